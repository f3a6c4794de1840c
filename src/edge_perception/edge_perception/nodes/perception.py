"""perception: source, detector, tracker, metrics and visualizer in one process.

All of them share one image subscription and one decoded frame. Each is the same node, with the
same name, parameters and topics, as when it runs alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_perception.nodes.detector import DetectorNode
from edge_perception.nodes.metrics import MetricsNode
from edge_perception.nodes.source import SourceNode
from edge_perception.nodes.tracker import TrackerNode
from edge_perception.nodes.visualizer import VisualizerNode
from edge_perception.ros import process
from edge_perception.ros.image_input import ImageInput, ImageInputParameters
from edge_perception.ros.lifecycle import ManagedNode, NodeParameters, Report
from edge_perception.ros.links import Links
from edge_perception.ros.parameters import ParameterError, parameter


def _make_gateway(**kwargs: Any) -> ManagedNode:
    # The web server is 30 MiB, which a robot that needs none shall not pay for.
    from edge_perception.nodes.gateway import GatewayNode

    return GatewayNode(**kwargs)


# In the order in which they start: who produces comes last, so that nothing is lost.
MEMBERS: dict[str, Callable[..., ManagedNode]] = {
    'metrics': MetricsNode,
    'gateway': _make_gateway,
    'visualizer': VisualizerNode,
    'tracker': TrackerNode,
    'detector': DetectorNode,
    'source': SourceNode,
}


@dataclass(frozen=True)
class PerceptionParameters(ImageInputParameters, NodeParameters):
    """Parameters of the perception node, which takes in the images for all."""

    image_depth: int = parameter(
        5, 'images that may wait in the middleware; older ones are lost', minimum=1, maximum=100
    )
    members: str = parameter(
        'detector,tracker,visualizer,metrics',
        'nodes to run in this process, separated by commas; with `source` among them images come '
        'from it and not from image_raw',
    )


class PerceptionNode(ManagedNode):
    """Topics: image_raw, for the other nodes of the process."""

    def __init__(self, *, links: Links, **kwargs: Any) -> None:
        super().__init__('perception', PerceptionParameters, links=links, **kwargs)

    @property
    def members(self) -> list[str]:
        """The nodes of this process, in the order in which they start.

        Raises:
            ParameterError: a name is not that of a node.
        """
        wanted = {name.strip() for name in self.parameters.members.split(',')} - {''}
        if unknown := wanted - MEMBERS.keys():
            raise ParameterError(
                f'members: {", ".join(sorted(unknown))} is not one of {", ".join(MEMBERS)}'
            )
        return [name for name in MEMBERS if name in wanted]

    def activate(self) -> None:
        """Subscribe, where no node of this process is the source."""
        assert self.links is not None
        self._input: ImageInput | None = None
        if 'source' not in self.members:
            self._input = ImageInput(
                self, self.parameters, self.links.frames.send, self.log_error_once_a_second
            )
            self.until_deactivate(self._input.close)

    def diagnose(self, report: Report) -> None:
        """Counts of the images taken in."""
        if self.state_label == 'active' and self._input is not None:
            report.values['received'] = str(self._input.received)
            report.values['failed'] = str(self._input.failed)
            self._input.diagnose(report)


def create_nodes() -> list[ManagedNode]:
    """The nodes of the process; `perception` itself last, so that it subscribes last."""
    links = Links()
    perception = PerceptionNode(links=links)
    return [*(MEMBERS[name](links=links) for name in perception.members), perception]


def main() -> None:
    """Run them."""
    sys.exit(process.run(create_nodes))


if __name__ == '__main__':
    main()
