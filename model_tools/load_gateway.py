"""Load /detect of a running pipeline, and compare its live latency with and without that load.

    python model_tools/load_gateway.py --clients 50 --seconds 60 [--out out/load_gateway.json]

Starts `perception` with the demo clip in a loop and a gateway on a free port of this machine. The
live latency is the age of the tracks when they leave the tracker, from the node's own histograms.
It is measured without load, then with CLIENTS clients that each send a picture, and the next one
as soon as it is answered or, when it is refused, after the time that the answer names
(--impatient: at once), then without load again, which shows how much the machine itself drifts.

The exit status is 1 when the loaded p95 is more than 1.2 times the unloaded one, when refusals
took more than a second (median), when an answer was none of 200, 429 and 503, or when the memory
or the open files of the process still grew in the second half of the load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from command_line import command, write_whole
from diagnostic_msgs.msg import DiagnosticArray
from live_graph import (
    LiveGraphError,
    Observer,
    clip_parameters,
    gateway_port,
    start_perception,
)

from edge_perception import media
from edge_perception.metrics.latency import LatencyHistogram
from edge_perception.ros.paths import share_folder
from edge_perception.ros.programs import end_process
from edge_perception.ros.statuses import histograms_from
from edge_perception.ros.transport import unused_domain_id

ALLOWED_RATIO = 1.2
ALLOWED_REFUSAL_S = 1.0
ALLOWED_GROWTH = 1.05
SETTLE_S = 8.0
BOUNDARY = 'edge-perception'


@dataclass
class Load:
    """What the clients saw.

    Attributes:
        statuses: how many answers of each HTTP status.
        answered_s: durations of the answered requests.
        refused_s: durations of the refusals.
        errors: how many connections broke.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    errors: int = 0


class LiveLatency:
    """The histograms that the nodes of the pipeline send, since their start."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._totals: dict[tuple[str, str], LatencyHistogram] = {}
        observer.subscribe(DiagnosticArray, 'latency_histograms', self._on_message)

    def _on_message(self, message: DiagnosticArray) -> None:
        for status in message.status:
            name, _, totals = histograms_from(status)
            self._totals.update({(name, stage): total for stage, total in totals.items()})

    def spin(self, seconds: float) -> None:
        """Take in messages for a time."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._observer.spin_once(min(left_s, 0.2))

    def measure(self, seconds: float) -> dict[str, Any]:
        """Percentiles of the tracks' and the detections' age over the next `seconds`."""
        before = dict(self._totals)
        self.spin(seconds)
        result = {}
        for name in ('tracker', 'detector'):
            key = (name, 'end_to_end')
            recent = self._totals[key].since(before[key])
            if recent is None:
                raise LiveGraphError(f'{name} started anew while it was measured')
            result[name] = asdict(recent.summary())
        return result


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('--clients', type=int, default=50)
    parser.add_argument('--seconds', type=float, default=60.0, help='of load')
    parser.add_argument('--video', type=Path, help='clip to loop (default: that of the demo)')
    parser.add_argument('--model', help='model file of the detector')
    parser.add_argument('--every-n', type=int, default=5)
    parser.add_argument('--impatient', action='store_true', help='ignore Retry-After')
    parser.add_argument('--out', type=Path, help='JSON report')
    parser.add_argument(
        '--clients-of', help=argparse.SUPPRESS
    )  # this program's own second process
    return parser.parse_args(arguments)


def wait_for_port(process: subprocess.Popen[bytes], log: Path, live: LiveLatency) -> int:
    """The port of the gateway, once the pipeline runs."""
    while True:
        live.spin(0.2)
        if port := gateway_port(log):
            return port
        if process.poll() is not None:
            raise LiveGraphError(f'perception could not start:\n{log.read_text()}')


def picture(video: Path) -> bytes:
    """The first frame of the clip as a JPEG."""
    with media.open_source(video) as source:
        return cv2.imencode('.jpg', next(iter(source)).image)[1].tobytes()


async def ask_on_and_on(
    port: int, request: bytes, end_s: float, impatient: bool, load: Load
) -> None:
    """One client, on one connection as long as that holds."""
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    while time.monotonic() < end_s:
        try:
            if reader is None or writer is None:
                reader, writer = await asyncio.open_connection('127.0.0.1', port)
            started_s = time.monotonic()
            writer.write(request)
            head = await reader.readuntil(b'\r\n\r\n')
            length = re.search(rb'content-length: (\d+)', head)
            assert length is not None
            await reader.readexactly(int(length[1]))
        except (OSError, asyncio.IncompleteReadError):
            load.errors += 1
            reader = writer = None
            await asyncio.sleep(0.1)
            continue
        status = int(head[9:12])
        load.statuses[status] += 1
        took_s = time.monotonic() - started_s
        (load.answered_s if status == 200 else load.refused_s).append(took_s)
        retry = re.search(rb'retry-after: (\d+)', head)
        if retry and not impatient:
            await asyncio.sleep(float(retry[1]))
    if writer is not None:
        writer.close()


def run_clients(args: argparse.Namespace) -> None:
    """The clients, in a process of their own; prints what they saw as JSON."""
    port, path = args.clients_of.split(':', 1)
    image = Path(path).read_bytes()
    body = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f.jpg"\r\n\r\n'
    ).encode() + image
    body += f'\r\n--{BOUNDARY}--\r\n'.encode()
    head = (
        'POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\n'
        f'Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n'
        f'Content-Length: {len(body)}\r\n\r\n'
    ).encode()
    load = Load()

    async def run() -> None:
        end_s = time.monotonic() + args.seconds
        await asyncio.gather(
            *(
                ask_on_and_on(int(port), head + body, end_s, args.impatient, load)
                for _ in range(args.clients)
            )
        )

    asyncio.run(run())
    print(json.dumps(vars(load)))


def measure_loaded(
    args: argparse.Namespace, port: int, image: Path, live: LiveLatency, process: psutil.Process
) -> tuple[dict[str, Any], dict[str, Any], list[tuple[int, int]]]:
    """Latency, what clients saw, and (resident bytes, open files) at half-time and at the end."""
    command = [sys.executable, __file__, '--clients-of', f'{port}:{image}']
    command += ['--clients', str(args.clients), '--seconds', str(args.seconds + 4.0)]
    command += ['--impatient'] if args.impatient else []
    clients = subprocess.Popen(command, stdout=subprocess.PIPE)
    live.spin(2.0)
    sizes = []
    parts = []
    for _ in range(2):
        parts.append(live.measure(args.seconds / 2))
        sizes.append((process.memory_info().rss, process.num_fds()))
    output, _ = clients.communicate()
    # The halves have the same length: the worse one counts.
    latency = max(parts, key=lambda part: part['tracker']['p95_ms'])
    return latency, json.loads(output), sizes


def run(args: argparse.Namespace, domain_id: int) -> dict[str, Any]:
    """All measurements."""
    video = args.video or share_folder() / 'data' / 'pedestrians.mp4'
    parameters = clip_parameters(video, every_n=args.every_n)
    if args.model:
        parameters.append(f'detector:model_path:={args.model}')
    with tempfile.TemporaryDirectory() as folder, Observer(domain_id) as observer:
        image, log = Path(folder) / 'picture.jpg', Path(folder) / 'log.txt'
        image.write_bytes(picture(video))
        live = LiveLatency(observer)
        process = start_perception(parameters, domain_id=domain_id, log=log)
        try:
            port = wait_for_port(process, log, live)
            live.spin(SETTLE_S)
            before = live.measure(args.seconds / 2)
            loaded, clients, sizes = measure_loaded(
                args, port, image, live, psutil.Process(process.pid)
            )
            live.spin(2.0)
            after = live.measure(args.seconds / 2)
        finally:
            end_process(process)
    unloaded_ms = float(np.mean([part['tracker']['p95_ms'] for part in (before, after)]))
    return {
        'clients': args.clients,
        'seconds': args.seconds,
        'impatient': args.impatient,
        'unloaded_before': before,
        'loaded': loaded,
        'unloaded_after': after,
        'p95_ratio': loaded['tracker']['p95_ms'] / unloaded_ms,
        'statuses': clients['statuses'],
        'broken_connections': clients['errors'],
        'answered_per_s': clients['statuses'].get('200', 0) / args.seconds,
        'answered_median_s': float(np.median(clients['answered_s'] or [0.0])),
        'refused_median_s': float(np.median(clients['refused_s'] or [0.0])),
        'refused_p99_s': float(np.percentile(clients['refused_s'] or [0.0], 99)),
        'rss_mib': [rss / 2**20 for rss, _ in sizes],
        'open_files': [files for _, files in sizes],
    }


def faults(report: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    found = []
    if report['p95_ratio'] > ALLOWED_RATIO:
        found.append(f'the loaded p95 is {report["p95_ratio"]:.2f} times the unloaded one')
    if report['refused_median_s'] > ALLOWED_REFUSAL_S:
        found.append(f'refusals took {report["refused_median_s"]:.2f} s')
    if others := set(report['statuses']) - {'200', '429', '503'}:
        found.append(f'answers of status {", ".join(sorted(others))}')
    if '200' not in report['statuses']:
        found.append('no request was answered')
    half, end = report['rss_mib']
    if end > half * ALLOWED_GROWTH:
        found.append(f'memory grew from {half:.0f} to {end:.0f} MiB')
    half, end = report['open_files']
    if end > half + 10:
        found.append(f'open files grew from {half} to {end}')
    return found


@command('load_gateway')
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    args = parse_arguments(arguments)
    if args.clients_of:
        run_clients(args)
        return 0
    report = run(args, int(os.environ.get('ROS_DOMAIN_ID') or unused_domain_id()))
    if args.out:
        text = json.dumps(report, indent=2) + '\n'
        write_whole(args.out, lambda path: path.write_text(text))
    for name in ('unloaded_before', 'loaded', 'unloaded_after'):
        tracks, detections = report[name]['tracker'], report[name]['detector']
        print(
            f'{name:15} tracks p50 {tracks["p50_ms"]:6.1f}  p95 {tracks["p95_ms"]:6.1f}  '
            f'p99 {tracks["p99_ms"]:6.1f} ms   detections p50 {detections["p50_ms"]:6.1f}  '
            f'p95 {detections["p95_ms"]:6.1f} ms  ({tracks["count"]} images)'
        )
    print(
        f'p95 ratio {report["p95_ratio"]:.2f}; answers {report["statuses"]}, '
        f'{report["answered_per_s"]:.1f} pictures a second, answered in '
        f'{report["answered_median_s"] * 1e3:.0f} ms, refused in '
        f'{report["refused_median_s"] * 1e3:.1f} ms (median); '
        f'memory {report["rss_mib"][0]:.0f} -> {report["rss_mib"][1]:.0f} MiB'
    )
    found = faults(report)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
