"""metrics: one status that says how fast and how healthy the whole pipeline is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from edge_perception.metrics.system import SystemSampler
from edge_perception.ros import process
from edge_perception.ros.lifecycle import ManagedNode, NodeParameters, Report
from edge_perception.ros.links import Links
from edge_perception.ros.parameters import parameter

# What of the nodes' own values the summary repeats.
SUMMARY_KEYS = {
    'detector': ('fps', 'backend', 'inference_ms.p50', 'inference_ms.p95', 'dropped', 'failed'),
    'tracker': ('fps', 'track_ms.p95', 'end_to_end_ms.p50', 'end_to_end_ms.p95', 'dropped'),
    'source': ('fps', 'published'),
}


@dataclass(frozen=True)
class MetricsParameters(NodeParameters):
    """Parameters of the metrics node."""

    nodes: str = parameter(
        'detector,tracker', 'names of the nodes that must be heard, separated by commas'
    )
    silent_after_s: float = parameter(
        3.0, 'a node that sends no diagnostics for longer is an error', minimum=1.5, live=True
    )
    cpu_warn_percent: float = parameter(
        95.0, 'load of all cores above which to warn', minimum=0.0, maximum=100.0, live=True
    )
    memory_warn_percent: float = parameter(
        90.0, 'memory in use above which to warn', minimum=0.0, maximum=100.0, live=True
    )
    temperature_warn_c: float = parameter(
        85.0, 'temperature above which to warn, in degrees Celsius', live=True
    )


class MetricsNode(ManagedNode):
    """Topics: /diagnostics of the other nodes -> /diagnostics with the summary."""

    def __init__(self, *, links: Links | None = None, **kwargs: Any) -> None:
        super().__init__('metrics', MetricsParameters, links=links, **kwargs)

    def activate(self) -> None:
        """Listen."""
        self._system = SystemSampler()
        self._heard_s: dict[str, float] = {}
        self._statuses: dict[str, DiagnosticStatus] = {}
        self._since_s = time.monotonic()
        subscription = self.create_subscription(
            DiagnosticArray, '/diagnostics', self._on_diagnostics, 50
        )
        self.until_deactivate(lambda: self.destroy_subscription(subscription))

    def diagnose(self, report: Report) -> None:
        """The summary."""
        if self.state_label != 'active':
            return
        p = self.parameters
        now_s = time.monotonic()
        for name in (part.strip() for part in p.nodes.split(',')):
            if not name:
                continue
            if now_s - self._heard_s.get(name, self._since_s) > p.silent_after_s:
                report.error(f'{name} is silent')
                continue
            status = self._statuses.get(name)
            if status is None:
                continue
            if status.level == DiagnosticStatus.ERROR:
                report.error(f'{name}: {status.message}')
            elif status.level != DiagnosticStatus.OK:
                report.warn(f'{name}: {status.message}')
            values = {item.key: item.value for item in status.values}
            for key in SUMMARY_KEYS.get(name, ('fps',)):
                if key in values:
                    report.values[f'{name}.{key}'] = values[key]
        self._add_system(report)

    def _add_system(self, report: Report) -> None:
        p, sample = self.parameters, self._system.sample()
        report.values['cpu_percent'] = f'{sample.cpu_percent:.1f}'
        report.values['process_cpu_percent'] = f'{sample.process_cpu_percent:.1f}'
        report.values['memory_percent'] = f'{sample.memory_percent:.1f}'
        report.values['process_rss_mib'] = f'{sample.process_rss_mib:.1f}'
        if sample.cpu_percent > p.cpu_warn_percent:
            report.warn(f'CPU load is {sample.cpu_percent:.0f} %')
        if sample.memory_percent > p.memory_warn_percent:
            report.warn(f'memory in use is {sample.memory_percent:.0f} %')
        if sample.temperature_c is not None:
            report.values['temperature_c'] = f'{sample.temperature_c:.1f}'
            if sample.temperature_c > p.temperature_warn_c:
                report.warn(f'temperature is {sample.temperature_c:.0f} degrees')

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        # Only nodes of the own namespace: every camera has its own pipeline and its own summary.
        prefix = self.get_namespace().strip('/')
        for status in message.status:
            namespace, _, name = status.name.split(':')[0].rpartition('/')
            if namespace == prefix and name != self.get_name():
                self._statuses[name] = status
                self._heard_s[name] = time.monotonic()


def main() -> None:
    """Run the node alone."""
    process.main(MetricsNode)


if __name__ == '__main__':
    main()
