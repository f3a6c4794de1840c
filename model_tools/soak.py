#!/usr/bin/env python3
"""Run the pipeline for a long time and see whether anything grows.

    python model_tools/soak.py --minutes 30 [--out out/soak] [--every-n 5] [--no-gateway]

Starts `perception` with a looped clip and the gateway, as a robot would, reads its tracks from
this process, watches its video and asks for its health and metrics. Sampled are resident memory,
open files, threads and CPU time of the process, and the age of each tracks message when it arrives
here. The first third of the time is warming up. Of the rest, the level of its last window is
compared with that of its first one.

It leaves report.txt, report.json, soak.png and perception.log in the folder given by --out. The
exit status is 1 when memory grew by more than 1 %, when open files or threads grew, when the
median latency rose by a quarter, or when less than 99 % of the images were answered.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from command_line import command, write_whole
from live_graph import (
    CLIP,
    Observer,
    answered_stamp_ns,
    clip_parameters,
    gateway_port,
    start_perception,
)
from rich.console import Console
from rich.table import Table
from vision_msgs.msg import Detection2DArray

from edge_perception.metrics.latency import LatencyHistogram
from edge_perception.ros.programs import end_process
from edge_perception.ros.transport import unused_domain_id
from edge_perception.types import EdgePerceptionError

START_S = 120.0
WINDOWS = 30
SAMPLES_A_WINDOW = 12
ALLOWED_RSS_GROWTH_PERCENT = 1.0
ALLOWED_DRIFT = 1.25
"""Of the median latency: what other work on the machine moves it by stays below."""
ALLOWED_DRIFT_MS = 1.0
ANSWERED_AT_LEAST_PERCENT = 99.0


class SoakError(EdgePerceptionError):
    """The pipeline did not start, or ended early."""


@dataclass(frozen=True)
class Window:
    """One part of the time.

    Attributes:
        end_s: seconds since the first tracks message.
        rss_mib: resident memory of the process, median of the samples.
        fds: open files, likewise.
        threads: likewise.
        cpu_percent_of_one_core: mean.
        tracks: messages that arrived.
        p50_ms: age of these messages at arrival, from the image's stamp.
        p95_ms: likewise.
    """

    end_s: float
    rss_mib: float
    fds: float
    threads: float
    cpu_percent_of_one_core: float
    tracks: int
    p50_ms: float
    p95_ms: float


class Sampler:
    """What the process uses, and how old its tracks are, by window."""

    def __init__(self, pid: int, window_s: float) -> None:
        self.windows: list[Window] = []
        self._process = psutil.Process(pid)
        self._window_s = window_s
        self._started_s = time.monotonic()
        self._begin()

    def _begin(self) -> None:
        self._latency = LatencyHistogram()
        self._samples: list[tuple[int, int, int]] = []
        self._begun_s = time.monotonic()
        self._cpu_s = self._cpu_time_s()

    def _cpu_time_s(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def add_latency(self, latency_ms: float) -> None:
        """The age of one tracks message."""
        self._latency.add(latency_ms)

    def sample(self) -> None:
        """Look at the process; ends the window when its time is over."""
        with self._process.oneshot():
            self._samples.append(
                (
                    self._process.memory_info().rss,
                    self._process.num_fds(),
                    self._process.num_threads(),
                )
            )
        now_s = time.monotonic()
        if now_s - self._begun_s < self._window_s:
            return
        rss, fds, threads = (float(median(values)) for values in zip(*self._samples, strict=True))
        summary = self._latency.summary()
        self.windows.append(
            Window(
                end_s=now_s - self._started_s,
                rss_mib=rss / 2**20,
                fds=fds,
                threads=threads,
                cpu_percent_of_one_core=(
                    100.0 * (self._cpu_time_s() - self._cpu_s) / (now_s - self._begun_s)
                ),
                tracks=summary.count,
                p50_ms=summary.p50_ms,
                p95_ms=summary.p95_ms,
            )
        )
        self._begin()


class Visitor:
    """A person with the live page open, and a monitoring that asks for numbers."""

    def __init__(self, port: int) -> None:
        self._url = f'http://127.0.0.1:{port}'
        self.stream_bytes = 0
        self.failures = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        try:
            with urllib.request.urlopen(f'{self._url}/stream.mjpg', timeout=30.0) as stream:
                while data := stream.read(65536):
                    self.stream_bytes += len(data)
        except OSError:
            pass  # the pipeline has ended; before its time, others say so

    def ask(self) -> None:
        """Health and metrics, each on a connection of its own as Prometheus has it."""
        for page in ('health', 'metrics', 'metrics/prometheus'):
            self._ask(page)

    def _ask(self, page: str) -> None:
        try:
            with urllib.request.urlopen(f'{self._url}/{page}', timeout=10.0) as answer:
                answer.read()
        except OSError:
            self.failures += 1


class Tracks:
    """Counts the tracks messages, and takes their age."""

    def __init__(self) -> None:
        self.count = 0
        self.sampler: Sampler | None = None

    def take(self, message: Detection2DArray) -> None:
        """A message has come."""
        self.count += 1
        if self.sampler is not None:
            self.sampler.add_latency((time.time_ns() - answered_stamp_ns(message)) / 1e6)


def run(args: argparse.Namespace, domain_id: int) -> dict[str, Any]:
    """Let it run.

    Raises:
        SoakError: the pipeline did not start, or ended before its time.
    """
    seconds = args.minutes * 60.0
    window_s = seconds / WINDOWS
    log = args.out / 'perception.log'
    parameters = clip_parameters(args.clip, every_n=args.every_n, gateway=not args.no_gateway)
    tracks = Tracks()
    with Observer(domain_id) as observer:
        observer.subscribe(Detection2DArray, 'tracks', tracks.take)
        perception = start_perception([*parameters, *args.parameter], domain_id=domain_id, log=log)
        try:
            began_s = time.monotonic()
            while not tracks.count:
                observer.spin_once()
                if perception.poll() is not None or time.monotonic() - began_s > START_S:
                    raise SoakError(f'no tracks came; what perception said is in {log}')
            port = gateway_port(log)
            visitor = Visitor(port) if port else None
            sampler = tracks.sampler = Sampler(perception.pid, window_s)
            due_s = time.monotonic()
            while len(sampler.windows) < WINDOWS:
                observer.spin_once()
                if perception.poll() is not None:
                    raise SoakError(
                        f'perception ended with status {perception.returncode} after '
                        f'{time.monotonic() - began_s:.0f} s; what it said is in {log}'
                    )
                if time.monotonic() < due_s:
                    continue
                due_s += window_s / SAMPLES_A_WINDOW
                done = len(sampler.windows)
                sampler.sample()
                if len(sampler.windows) > done:
                    # After a sample, so that connections of a moment are in none.
                    if visitor is not None:
                        visitor.ask()
                    print_line(sampler.windows[-1])
        finally:
            end_process(perception)
    source, tracker = (observer.diagnostics.get(name, {}) for name in ('source', 'tracker'))
    return {
        'minutes': args.minutes,
        'clip': str(args.clip),
        'exit_status': perception.returncode,
        'published': int(source.get('published', 0)),
        'tracked': int(tracker.get('tracked', 0)),
        'dropped': int(tracker.get('dropped', 0)),
        'failed': int(tracker.get('failed', 0)),
        'stream_mib': visitor.stream_bytes / 2**20 if visitor else 0.0,
        'requests_failed': visitor.failures if visitor else 0,
        'windows': [asdict(window) for window in sampler.windows],
        **judge(sampler.windows),
    }


def judge(windows: Sequence[Window]) -> dict[str, float]:
    """How the last two thirds went.

    Args:
        windows: of the whole time.

    Returns:
        Growth of memory in percent, of open files and threads, and the ratio of the median and
        the 95th percentile of the latency in the last third to that in the middle one.
    """
    third = len(windows) // 3
    middle, last = windows[third : 2 * third], windows[2 * third :]
    first, end = middle[0], last[-1]

    def level(part: Sequence[Window], name: str) -> float:
        return median(getattr(window, name) for window in part)

    return {
        'rss_growth_percent': 100.0 * (end.rss_mib - first.rss_mib) / first.rss_mib,
        'fds_growth': end.fds - first.fds,
        'threads_growth': end.threads - first.threads,
        'p50_ratio': level(last, 'p50_ms') / level(middle, 'p50_ms'),
        'p50_change_ms': level(last, 'p50_ms') - level(middle, 'p50_ms'),
        'p95_ratio': level(last, 'p95_ms') / level(middle, 'p95_ms'),
    }


def faults(report: dict[str, Any]) -> list[str]:
    """What is not as it should be, a line each."""
    found = []
    if report['rss_growth_percent'] > ALLOWED_RSS_GROWTH_PERCENT:
        found.append(f'memory grew by {report["rss_growth_percent"]:.2f} %')
    for name, text in (('fds_growth', 'open files'), ('threads_growth', 'threads')):
        if report[name] > 0:
            found.append(f'{text} grew by {report[name]:g}')
    if report['p50_ratio'] > ALLOWED_DRIFT and report['p50_change_ms'] > ALLOWED_DRIFT_MS:
        found.append(f'the median latency rose to {report["p50_ratio"]:.2f} times')
    answered = 100.0 * report['tracked'] / max(report['published'], 1)
    if answered < ANSWERED_AT_LEAST_PERCENT:
        found.append(f'only {answered:.1f} % of the images were answered')
    if report['requests_failed']:
        found.append(f'{report["requests_failed"]} requests to the gateway failed')
    if report['exit_status']:
        found.append(f'perception ended with status {report["exit_status"]}')
    return found


def print_line(window: Window) -> None:
    """One window, as it ends."""
    print(
        f'{window.end_s / 60:6.1f} min  {window.rss_mib:7.1f} MiB  {window.fds:g} files  '
        f'{window.threads:g} threads  {window.cpu_percent_of_one_core:5.1f} % of a core  '
        f'{window.tracks} tracks  p50 {window.p50_ms:.1f}  p95 {window.p95_ms:.1f} ms',
        flush=True,
    )


def summary_text(report: dict[str, Any]) -> str:
    """The report for people."""
    table = Table(box=None)
    for column in ('minute', 'MiB', 'files', 'threads', '% of a core', 'tracks', 'p50', 'p95 ms'):
        table.add_column(column, justify='right')
    for window in report['windows']:
        table.add_row(
            f'{window["end_s"] / 60:.1f}',
            f'{window["rss_mib"]:.1f}',
            f'{window["fds"]:g}',
            f'{window["threads"]:g}',
            f'{window["cpu_percent_of_one_core"]:.0f}',
            str(window['tracks']),
            f'{window["p50_ms"]:.1f}',
            f'{window["p95_ms"]:.1f}',
        )
    text = StringIO()
    Console(file=text, width=99).print(table)
    found = faults(report)
    verdict = f'not as it should be: {"; ".join(found)}' if found else 'nothing grew'
    return (
        f'{text.getvalue()}\n'
        f'{report["minutes"]:g} minutes, {report["published"]} images, {report["tracked"]} '
        f'answered, {report["dropped"]} dropped, {report["failed"]} failed\n'
        f'in the last two thirds: memory {report["rss_growth_percent"]:+.2f} %, open files '
        f'{report["fds_growth"]:+g}, threads {report["threads_growth"]:+g}, latency p50 x '
        f'{report["p50_ratio"]:.2f}, p95 x {report["p95_ratio"]:.2f} (last third to the one '
        f'before)\n{verdict}\n'
    )


def write_plot(windows: Sequence[dict[str, Any]], path: Path) -> None:
    """Memory and latency over the time."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    minutes = [window['end_s'] / 60 for window in windows]
    figure, (memory, latency) = pyplot.subplots(
        2, 1, sharex=True, figsize=(9, 6), layout='constrained'
    )
    memory.plot(minutes, [window['rss_mib'] for window in windows])
    memory.set_ylabel('resident memory, MiB')
    memory.set_ylim(bottom=0)
    for name in ('p50_ms', 'p95_ms'):
        latency.plot(minutes, [window[name] for window in windows], label=name.split('_')[0])
    latency.set_ylabel('image to tracks, ms')
    latency.set_ylim(bottom=0)
    latency.set_xlabel('minutes')
    latency.legend()
    for axes in (memory, latency):
        axes.axvspan(0, minutes[-1] / 3, color='0.9')  # warming up
    figure.savefig(path, format='png', dpi=120)
    pyplot.close(figure)


def _minutes(text: str) -> float:
    value = float(text)
    if not value >= 0.5:
        raise ValueError(text)
    return value


@command('soak', stopped='no report')
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--minutes', type=_minutes, default=30.0, help='at least 0.5')
    parser.add_argument('--out', type=Path, default=Path('out/soak'), help='folder for results')
    parser.add_argument('--clip', type=Path, default=CLIP, help='video to loop')
    parser.add_argument('--every-n', type=int, default=5, help='detect on every N-th image')
    parser.add_argument('--no-gateway', action='store_true', help='without HTTP')
    parser.add_argument(
        '--parameter', action='append', default=[], help='NODE:NAME:=VALUE for perception'
    )
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    report = run(args, int(os.environ.get('ROS_DOMAIN_ID') or unused_domain_id()))
    text = summary_text(report)
    json_text = json.dumps(report, indent=2) + '\n'
    write_whole(args.out / 'report.txt', lambda path: path.write_text(text))
    write_whole(args.out / 'report.json', lambda path: path.write_text(json_text))
    write_whole(args.out / 'soak.png', lambda path: write_plot(report['windows'], path))
    print(text, end='')
    return 1 if faults(report) else 0


if __name__ == '__main__':
    sys.exit(main())
