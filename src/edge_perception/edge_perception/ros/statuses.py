"""What the nodes of a pipeline last said of themselves, from their diagnostics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.qos import QoSProfile

from edge_perception.metrics.latency import LatencyHistogram
from edge_perception.ros.cameras import in_camera
from edge_perception.ros.lifecycle import ManagedNode
from edge_perception.ros.qos import RESULTS_QOS


@dataclass(frozen=True)
class NodeStatus:
    """The last status of one node.

    Attributes:
        level: one of the constants of DiagnosticStatus.
        message: why it has this level; several reasons are separated by `; `.
        values: numbers and texts by key.
        heard_s: when it came, in steady time.
    """

    level: bytes
    message: str
    values: dict[str, str]
    heard_s: float

    @property
    def state(self) -> str:
        """Lifecycle state, such as active."""
        return self.values.get('state', '')


class NodeStatuses:
    """The last statuses of the nodes of one pipeline: of a namespace, and of its cameras.

    `update` and `forgive` are called on one thread, the others on any.

    Args:
        namespace: of the nodes, with or without slashes.
        own_name: a node to leave out.
        cameras: namespaces in it whose nodes belong to the pipeline; these are named with their
            camera, such as `front/tracker`.
    """

    def __init__(self, namespace: str, *, own_name: str, cameras: Sequence[str] = ('',)) -> None:
        prefix = namespace.strip('/')
        self._prefix = f'{prefix}/' if prefix else ''
        self._own_name = own_name
        self._cameras = ('', *cameras)
        self.of: dict[str, NodeStatus] = {}

    def listen(
        self, node: ManagedNode, on_histograms: Callable[[DiagnosticArray], object]
    ) -> None:
        """Take in what the nodes say of themselves, until `node` is deactivated.

        Args:
            node: who subscribes.
            on_histograms: called with each message of latency_histograms.
        """
        node.subscribe(DiagnosticArray, '/diagnostics', self.update, QoSProfile(depth=50))
        for camera in dict.fromkeys(self._cameras):
            topic = in_camera(camera, 'latency_histograms')
            node.subscribe(DiagnosticArray, topic, on_histograms, RESULTS_QOS)

    def update(self, message: DiagnosticArray) -> None:
        """Take in a message of /diagnostics."""
        for status in message.status:
            name = self.relative_name(status.name.split(':')[0])
            if name and name != self._own_name:
                heard = NodeStatus(
                    bytes(status.level),
                    status.message,
                    _values(status),
                    time.monotonic(),
                )
                self.of = {**self.of, name: heard}  # other threads iterate over the old one

    def relative_name(self, full_name: str) -> str:
        """The name that a node has here; empty when it is of another pipeline."""
        name = full_name.strip('/')
        if not name.startswith(self._prefix):
            return ''
        name = name[len(self._prefix) :]
        return name if name.rpartition('/')[0] in self._cameras else ''

    def heard(self, within_s: float) -> dict[str, NodeStatus]:
        """The statuses of the last seconds, by node."""
        oldest_s = time.monotonic() - within_s
        return {name: status for name, status in self.of.items() if status.heard_s >= oldest_s}

    def forgive(self, pause_s: float) -> None:
        """Count nobody's silence in a time in which nothing was taken in."""
        self.of = {
            name: replace(status, heard_s=status.heard_s + pause_s)
            for name, status in self.of.items()
        }


def values_by_node(message: DiagnosticArray) -> dict[str, dict[str, str]]:
    """The values of a message of /diagnostics, by the full name of the node without its slash."""
    return {status.name.split(':')[0]: _values(status) for status in message.status}


def histograms_from(status: DiagnosticStatus) -> tuple[str, float, dict[str, LatencyHistogram]]:
    """A status of the topic latency_histograms.

    Returns:
        The node's full name, the age of its histograms in seconds, and the histograms by stage.

    Raises:
        ValueError: it does not come from a node of this package.
    """
    values = _values(status)
    age_s = float(values.pop('age_s'))
    totals = {stage: LatencyHistogram.from_text(text) for stage, text in values.items()}
    return status.name, age_s, totals


def _values(status: DiagnosticStatus) -> dict[str, str]:
    return {item.key: item.value for item in status.values}
