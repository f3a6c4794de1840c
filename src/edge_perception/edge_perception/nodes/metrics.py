"""metrics: one status that says how fast and how healthy the pipeline is, and what is wrong."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from edge_perception.metrics.latency import SlidingTotals
from edge_perception.metrics.system import GpuSample, SystemSample, SystemSampler
from edge_perception.ros import process
from edge_perception.ros.cameras import (
    CamerasParameters,
    camera_names,
    in_camera,
    in_cameras,
)
from edge_perception.ros.lifecycle import RECENT_S, ManagedNode, NodeParameters, Report
from edge_perception.ros.links import Links
from edge_perception.ros.parameters import comma_separated, parameter
from edge_perception.ros.statuses import NodeStatus, NodeStatuses, histograms_from
from edge_perception.ros.worker import STOP_S, join_started

STAGES = {
    'transport': ('perception', 'detector', 'tracker'),
    'queue': ('detector', 'tracker'),
    'preprocess': ('detector',),
    'inference': ('detector',),
    'postprocess': ('detector',),
    'track': ('tracker',),
    'publish': ('detector', 'tracker'),
    'end_to_end': ('tracker',),
}
"""Stages of the pipeline, and the nodes whose durations of it are put together."""
OUTPUT_NODE = 'tracker'
LOADING_AT_MOST_S = 300.0
CLOCK_STEP_S = 0.5


@dataclass(frozen=True)
class MetricsParameters(CamerasParameters, NodeParameters):
    """Parameters of the metrics node."""

    nodes: str = parameter(
        'detector,tracker',
        'names of the nodes that must be heard, of each camera, separated by commas',
    )
    window_s: float = parameter(
        60.0,
        'percentiles are those of so many last seconds',
        minimum=2.0,
        maximum=3600.0,
    )
    silent_after_s: float = parameter(
        3.0, 'a node that sends no diagnostics for longer is an error', minimum=1.5, live=True
    )
    fps_warn: float = parameter(
        0.0, 'rate of tracks below which to warn; 0 never', minimum=0.0, live=True
    )
    latency_warn_ms: float = parameter(
        0.0,
        'image stamp to tracks, 95th percentile, above which to warn; 0 never',
        minimum=0.0,
        live=True,
    )
    latency_error_ms: float = parameter(
        0.0, 'the same, above which it is an error; 0 never', minimum=0.0, live=True
    )
    dropped_warn_percent: float = parameter(
        5.0,
        'share of the images of the last seconds that a node dropped, above which to warn',
        minimum=0.0,
        maximum=100.0,
        live=True,
    )
    cpu_warn_percent: float = parameter(
        95.0, 'load of all cores above which to warn', minimum=0.0, maximum=100.0, live=True
    )
    memory_warn_percent: float = parameter(
        90.0, 'memory in use above which to warn', minimum=0.0, maximum=100.0, live=True
    )
    memory_error_percent: float = parameter(
        97.0, 'memory in use above which it is an error', minimum=0.0, maximum=100.0, live=True
    )
    temperature_warn_c: float = parameter(
        85.0, 'temperature above which to warn, in degrees Celsius', live=True
    )
    temperature_error_c: float = parameter(
        100.0, 'temperature above which it is an error, in degrees Celsius', live=True
    )


class MetricsNode(ManagedNode):
    """Topics: /diagnostics and latency_histograms of the other nodes -> /diagnostics.

    Besides the level and the numbers, the status holds `why_no_output.1`, `.2` and so on while
    nothing comes out of the pipeline.
    """

    def __init__(self, *, links: Links | None = None, **kwargs: Any) -> None:
        super().__init__('metrics', MetricsParameters, links=links, **kwargs)

    def activate(self) -> None:
        """Listen."""
        p = self.parameters
        self._cameras = camera_names(p.cameras)
        self._statuses = NodeStatuses(
            self.get_namespace(), own_name=self.get_name(), cameras=self._cameras
        )
        self._totals = SlidingTotals(p.window_s)
        self._dropped: dict[str, tuple[int, int]] = {}
        self._since_s = self._diagnosed_s = time.monotonic()
        self._clock_offset_s = time.time() - time.monotonic()
        self._clock_step = (0.0, '')
        self._statuses.listen(self, self._on_histograms)
        # Sensors may be slow to answer, and the executor has images to take in.
        self._sample: SystemSample | None = None
        self._pids: set[int] = set()
        ending = threading.Event()
        thread = threading.Thread(
            target=self._sample_system, args=(ending,), name='system', daemon=True
        )
        self.until_deactivate(lambda: join_started(thread, STOP_S))
        self.until_deactivate(ending.set)
        thread.start()

    def _sample_system(self, ending: threading.Event) -> None:
        sampler = SystemSampler()
        while not ending.wait(1.0):
            self._sample = sampler.sample(self._pids)
        sampler.close()

    def _on_histograms(self, message: DiagnosticArray) -> None:
        for status in message.status:
            full_name, age_s, totals = histograms_from(status)
            if name := self._statuses.relative_name(full_name):
                self._totals.update(name, totals, age_s)

    def diagnose(self, report: Report) -> None:
        """The summary."""
        if self.state_label != 'active':
            return
        self._skip_pause()
        reasons = [*self._missing(report), *self._merge(report)]
        self._add_stages(report)
        self._add_counts(report)
        self._add_clock(report)
        if self._sample is not None:
            self._add_system(report, self._sample)
        self._explain(report, reasons)

    def _skip_pause(self) -> None:
        """Time in which this process took no messages in (a model was loading) does not count."""
        now_s = time.monotonic()
        pause_s = now_s - self._diagnosed_s
        self._diagnosed_s = now_s
        if pause_s > 2.0:
            self._since_s += pause_s
            self._statuses.forgive(pause_s)

    def _missing(self, report: Report) -> list[_Reason]:
        """Report nodes that are needed and not there; returns what to say of them."""
        p = self.parameters
        reasons = []
        for name in in_cameras(self._cameras, comma_separated(p.nodes)):
            status = self._statuses.of.get(name)
            silent_s = time.monotonic() - (status.heard_s if status else self._since_s)
            if silent_s <= p.silent_after_s:
                continue
            if status is None:
                text = f'{name} is silent: it does not run, or not in this namespace'
            elif status.state == 'configuring' and status.level == DiagnosticStatus.ERROR:
                text = f'{name} ended: {status.message}'
            elif status.state == 'configuring' and silent_s < LOADING_AT_MOST_S:
                report.warn(f'{name} is loading for {silent_s:.0f} s')
                continue
            else:
                text = f'{name} is silent for {silent_s:.0f} s: it ended, or hangs'
            report.error(text)
            reasons.append(_Reason(text, (name,)))
        return reasons

    def _merge(self, report: Report) -> list[_Reason]:
        """Take over what the nodes say; the same said by several is said once.

        Returns:
            All of it, also what is worth no warning.
        """
        said: dict[tuple[bytes, str], list[str]] = {}
        for name, status in self._heard().items():
            if status.message != 'OK':
                for text in status.message.split('; '):
                    said.setdefault((status.level, text), []).append(name)
        reasons = []
        for (level, message), names in said.items():
            text = f'{", ".join(sorted(names))}: {message}'
            reasons.append(_Reason(text, tuple(names)))
            if level == DiagnosticStatus.ERROR:
                report.error(text)
            elif level != DiagnosticStatus.OK:
                report.warn(text)
        return reasons

    def _heard(self) -> dict[str, NodeStatus]:
        return self._statuses.heard(self.parameters.silent_after_s)

    def _add_stages(self, report: Report) -> None:
        p = self.parameters
        report.values['window_s'] = f'{p.window_s:g}'
        for stage, nodes in STAGES.items():
            summary = self._totals.window(stage, in_cameras(self._cameras, nodes)).summary()
            report.values[f'{stage}_ms.count'] = str(summary.count)
            if not summary.count:
                continue
            for key in ('avg', 'p50', 'p90', 'p95', 'p99', 'max'):
                report.values[f'{stage}_ms.{key}'] = f'{getattr(summary, f"{key}_ms"):.3f}'
            if stage == 'end_to_end':
                text = f'tracks are {summary.p95_ms:.0f} ms late (95th percentile)'
                if p.latency_error_ms and summary.p95_ms > p.latency_error_ms:
                    report.error(text)
                elif p.latency_warn_ms and summary.p95_ms > p.latency_warn_ms:
                    report.warn(text)

    def _add_counts(self, report: Report) -> None:
        p = self.parameters
        inferences: Counter[str] = Counter()
        heard = self._heard()
        for name, status in heard.items():
            for key in ('fps', 'backend', 'received', 'dropped', 'failed', 'published'):
                if key in status.values:
                    report.values[f'{name}.{key}'] = status.values[key]
            for key, value in status.values.items():
                if key.startswith('inferences.'):
                    inferences[key.removeprefix('inferences.')] += int(value)
            if {'received', 'dropped'} <= status.values.keys():
                received, dropped = int(status.values['received']), int(status.values['dropped'])
                was_received, was_dropped = self._dropped.get(name, (0, 0))
                self._dropped[name] = received, dropped
                new, lost = received - was_received, dropped - was_dropped
                # A node of several cameras says the same of each of them.
                is_sum = 'cameras' in status.values
                if new > 0 and not is_sum and 100.0 * lost / new > p.dropped_warn_percent:
                    report.warn(f'{name} dropped {lost} of {new} images in the last second')
        report.values['inference_count'] = str(inferences.total())
        for backend, count in inferences.items():
            report.values[f'inferences.{backend}'] = str(count)
        rates = {
            name: float(heard_of.values.get('fps', 0.0))
            for name in in_cameras(self._cameras, [OUTPUT_NODE])
            if (heard_of := heard.get(name)) is not None and heard_of.state == 'active'
        }
        if rates:
            report.values['fps'] = f'{sum(rates.values()):.2f}'
        for name, fps in rates.items():
            if 0.0 < fps < p.fps_warn:
                of_camera = f' of {name.rpartition("/")[0]}' if '/' in name else ''
                report.warn(
                    f'{fps:.1f} tracks messages{of_camera} a second, wanted {p.fps_warn:g}'
                )

    def _add_clock(self, report: Report) -> None:
        now_s = time.monotonic()
        offset_s = time.time() - now_s
        step_s = offset_s - self._clock_offset_s
        self._clock_offset_s = offset_s
        if abs(step_s) > CLOCK_STEP_S:
            self._clock_step = (now_s, f'the clock of this machine was set by {step_s:+.1f} s')
        stepped_s, text = self._clock_step
        if text and now_s - stepped_s < RECENT_S:
            report.warn(text)

    def _add_system(self, report: Report, sample: SystemSample) -> None:
        p = self.parameters
        report.values['cpu_percent'] = f'{sample.cpu_percent:.1f}'
        report.values['memory_percent'] = f'{sample.memory_percent:.1f}'
        if sample.cpu_percent > p.cpu_warn_percent:
            report.warn(f'CPU load is {sample.cpu_percent:.0f} %')
        _judge(
            report,
            f'memory in use is {sample.memory_percent:.0f} %',
            sample.memory_percent,
            p.memory_warn_percent,
            p.memory_error_percent,
        )
        temperatures = [sample.temperature_c, *(gpu.temperature_c for gpu in sample.gpus)]
        if known := [value for value in temperatures if value is not None]:
            report.values['temperature_c'] = f'{max(known):.1f}'
            _judge(
                report,
                f'temperature is {max(known):.0f} degrees',
                max(known),
                p.temperature_warn_c,
                p.temperature_error_c,
            )
        for index, gpu in enumerate(sample.gpus):
            _add_gpu(report, f'gpu.{index}', gpu)
        host = socket.gethostname()
        labels: dict[int, list[str]] = {}
        for name, status in (*self._heard().items(), (self.get_name(), None)):
            text = status.values.get('process', '') if status else self.process_text
            of_host, _, pid_text = text.rpartition(':')
            if of_host == host:
                labels.setdefault(int(pid_text), []).append(name)
        self._pids = set(labels)
        for pid, load in sample.processes.items():
            names = labels.get(pid, [])
            label = 'perception' if 'perception' in names else '+'.join(sorted(names))
            if label:
                report.values[f'process.{label}.cpu_percent'] = f'{load.cpu_percent:.1f}'
                report.values[f'process.{label}.rss_mib'] = f'{load.rss_mib:.1f}'
                report.values[f'process.{label}.threads'] = str(load.threads)

    def _explain(self, report: Report, reasons: list[_Reason]) -> None:
        """Say why nothing comes out, when nothing does: of any camera."""
        heard = self._heard()
        texts: dict[str, None] = {}  # in order, each once
        for camera in self._cameras:
            output = heard.get(in_camera(camera, OUTPUT_NODE))
            values = output.values if output else {}
            comes = float(values.get('fps', 0.0)) > 0.0
            if comes and any(
                int(values.get(f'tracks_{source}', 0)) for source in ('detected', 'predicted')
            ):
                continue
            others = {other for other in self._cameras if other != camera}
            of_camera = [reason.text for reason in reasons if not reason.is_only_of(others)]
            if not of_camera:
                text = (
                    'images come and nothing is found in them'
                    if comes
                    else 'no image has been answered in the last seconds'
                )
                of_camera = [f'{camera}: {text}' if camera else text]
            texts.update(dict.fromkeys(of_camera))
        for number, text in enumerate(texts, 1):
            report.values[f'why_no_output.{number}'] = text


@dataclass(frozen=True)
class _Reason:
    """What may be why nothing comes out, and the nodes that it is said of."""

    text: str
    nodes: tuple[str, ...]

    def is_only_of(self, cameras: set[str]) -> bool:
        """Whether all its nodes are of these cameras."""
        return all(node.rpartition('/')[0] in cameras for node in self.nodes)


def _judge(report: Report, text: str, value: float, warn_above: float, error_above: float) -> None:
    if value > error_above:
        report.error(text)
    elif value > warn_above:
        report.warn(text)


def _add_gpu(report: Report, key: str, gpu: GpuSample) -> None:
    report.values[f'{key}.name'] = gpu.name
    for field in (
        'usage_percent',
        'memory_used_mib',
        'memory_total_mib',
        'temperature_c',
        'power_w',
    ):
        value = getattr(gpu, field)
        if value is not None:
            report.values[f'{key}.{field}'] = f'{value:.1f}'


def main() -> None:
    """Run the node alone."""
    process.main(MetricsNode)


if __name__ == '__main__':
    main()
