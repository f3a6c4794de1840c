"""perception: source, detector, tracker, metrics and visualizer in one process.

All of them share one image subscription and one decoded frame. Each is the same node, with the
same name, parameters and topics, as when it runs alone.

With several cameras there is one detector, and a tracker, a visualizer and a source in the
namespace of each camera.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from rclpy.parameter import Parameter

from edge_perception.nodes.detector import DetectorNode
from edge_perception.nodes.metrics import MetricsNode
from edge_perception.nodes.source import SourceNode
from edge_perception.nodes.tracker import TrackerNode
from edge_perception.nodes.visualizer import VisualizerNode
from edge_perception.ros import process
from edge_perception.ros.cameras import CamerasParameters, camera_names
from edge_perception.ros.image_input import ImageInput, ImageInputParameters
from edge_perception.ros.lifecycle import Camera, ManagedNode, NodeParameters, Report
from edge_perception.ros.links import Links
from edge_perception.ros.parameters import ParameterError, comma_separated, parameter


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
EACH_CAMERA = ('visualizer', 'tracker', 'source')
"""Members of which every camera has its own; the others serve all cameras."""


@dataclass(frozen=True)
class PerceptionParameters(ImageInputParameters, CamerasParameters, NodeParameters):
    """Parameters of the perception node, which takes in the images for all."""

    image_depth: int = parameter(
        5, 'images that may wait in the middleware; older ones are lost', minimum=1, maximum=100
    )
    members: str = parameter(
        'detector,tracker,visualizer,metrics',
        'nodes to run in this process, separated by commas; with `source` among them images come '
        'from it and not from image_raw',
    )


class PerceptionCamera(Camera):
    """The images of one camera, for the other nodes of the process."""

    def __init__(self, node: PerceptionNode, name: str) -> None:
        super().__init__(node, name)
        self.input: ImageInput | None = None

    def subscribe(self) -> None:
        """Take images in, until the node is deactivated."""
        assert self.node.links is not None
        self.input = ImageInput(
            self.node,
            self.node.parameters,
            self.node.links.of(self.name).frames.send,
            self.log_error_once_a_second,
            camera=self,
        )
        self.node.until_deactivate(self.input.close)

    def diagnose(self, report: Report) -> None:
        """Counts of the images taken in."""
        if self.node.state_label == 'active' and self.input is not None:
            report.values['received'] = str(self.input.received)
            report.values['failed'] = str(self.input.failed)
            self.input.diagnose(report)


class PerceptionNode(ManagedNode):
    """Topics: image_raw, of each camera where there are several, for the nodes of the process."""

    cameras: tuple[PerceptionCamera, ...]

    def __init__(self, *, links: Links, **kwargs: Any) -> None:
        super().__init__('perception', PerceptionParameters, links=links, **kwargs)

    @property
    def members(self) -> list[str]:
        """The nodes of this process, in the order in which they start.

        Raises:
            ParameterError: a name is not that of a node.
        """
        wanted = set(comma_separated(self.parameters.members))
        if unknown := wanted - MEMBERS.keys():
            raise ParameterError(
                f'members: {", ".join(sorted(unknown))} is not one of {", ".join(MEMBERS)}'
            )
        return [name for name in MEMBERS if name in wanted]

    def activate(self) -> None:
        """Subscribe, where no node of this process is the source."""
        names = camera_names(self.parameters.cameras)
        self.cameras = tuple(PerceptionCamera(self, name) for name in names)
        if 'source' not in self.members:
            for camera in self.cameras:
                camera.subscribe()

    def diagnose(self, report: Report) -> None:
        """Counts of the images taken in."""
        for camera in self.cameras:
            if not camera.name:
                camera.diagnose(report)


def create_nodes(**kwargs: Any) -> list[ManagedNode]:
    """The nodes of the process; `perception` itself last, so that it subscribes last.

    Args:
        kwargs: for rclpy's nodes, such as a context.

    Raises:
        ParameterError: the parameters of `perception` are wrong.
    """
    links = Links()
    overrides = cast('list[Parameter]', kwargs.pop('parameter_overrides', []))
    perception = PerceptionNode(links=links, parameter_overrides=overrides, **kwargs)
    cameras = perception.parameters.cameras
    names = camera_names(cameras)
    nodes: list[ManagedNode] = []
    for member in perception.members:
        make = MEMBERS[member]
        if cameras and member in EACH_CAMERA:
            for name in names:
                arguments = ['--ros-args', '-r', f'__ns:={_namespace(perception, name)}']
                nodes.append(make(links=links.of(name), cli_args=arguments, **kwargs))
        elif cameras:
            given = [Parameter('cameras', value=cameras)]
            nodes.append(make(links=links, parameter_overrides=given, **kwargs))
        else:
            nodes.append(make(links=links, **kwargs))
    return [*nodes, perception]


def _namespace(perception: ManagedNode, camera: str) -> str:
    # As an argument: `-r __ns:=...` of the process would win over a namespace that is given so.
    return f'{perception.get_namespace().rstrip("/")}/{camera}'


def main() -> None:
    """Run them."""
    process.leave(process.run(create_nodes))


if __name__ == '__main__':
    main()
