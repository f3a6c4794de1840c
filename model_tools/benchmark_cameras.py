#!/usr/bin/env python3
"""Measure one detector that serves several cameras: rate, latency, losses, fairness, memory.

    python model_tools/benchmark_cameras.py --seconds 20 --rounds 3 --json cameras.json
    python model_tools/benchmark_cameras.py 1x120/1 8x15/1 1x120+7x10/1
    python model_tools/benchmark_cameras.py 1x80/1 8x10/1 --parameter perception:members:=detector

A case is CAMERASxHZ/N: so many cameras of so many images a second, detected on every N-th; `+`
joins cameras of different rates. One process publishes bgr8 images of all cameras, `perception`
runs as it does for a user, and this process takes in tracks and detections.

Where images come faster than the processor can track them, the tracker, which answers every image,
takes time from the detector: the last of the commands above measures the detector alone.

Printed, and with --json written, for each case (medians over the rounds, which take the cases by
turns): detections a second of all cameras, and as a share of the first case's; image stamp to
arrival of the tracks; images without tracks; the lowest share of a camera in what is fairly its
own (1 is fair: as much as it wants, or as much as the others get); memory and CPU of
`perception`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import re
import statistics
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import rclpy
from command_line import command, parse_size, write_whole
from live_graph import CLIP, LEAD_IN_S, Observer, run_graph
from rclpy.node import Node
from rich.console import Console
from rich.table import Table
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray

from edge_perception import media
from edge_perception.metrics.latency import LatencyHistogram
from edge_perception.ros.cameras import in_camera
from edge_perception.ros.images import frame_to_image
from edge_perception.ros.messages import make_header
from edge_perception.ros.qos import image_qos
from edge_perception.ros.transport import apply_transport_defaults, unused_domain_id
from edge_perception.types import Frame

CASES = (
    '1x120/1',
    '8x15/1',
    '1x120+7x10/1',
    '8x10/1',
    '1x10/5',
    '2x10/5',
    '4x10/5',
    '8x10/5',
)
KEPT_FRAMES = 20
SETTLE_S = 1.0
TABLE_WIDTH = 130


@dataclass(frozen=True)
class Case:
    """What to measure.

    Attributes:
        text: as it was given.
        rates_hz: images a second of each camera.
        every_n: the detector takes every N-th.
    """

    text: str
    rates_hz: tuple[float, ...]
    every_n: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """The case that a text such as `1x120+7x10/1` stands for.

        Raises:
            argparse.ArgumentTypeError: it is no case.
        """
        cameras, _, every_n = text.partition('/')
        parts = [re.fullmatch(r'(\d+)x(\d+\.?\d*)', part) for part in cameras.split('+')]
        if not all(parts) or not every_n.isdecimal() or int(every_n) < 1:
            raise argparse.ArgumentTypeError(f'{text!r} is not CAMERASxHZ/N, such as 8x10/5')
        rates_hz = [float(part[2]) for part in parts if part for _ in range(int(part[1]))]
        if not rates_hz or min(rates_hz) <= 0:
            raise argparse.ArgumentTypeError(f'{text!r}: cameras and rates must be above 0')
        return cls(text, tuple(rates_hz), int(every_n))

    @property
    def cameras(self) -> tuple[str, ...]:
        """Their namespaces; a single one has none, as for a user with one camera."""
        if len(self.rates_hz) == 1:
            return ('',)
        return tuple(f'camera{i}' for i in range(len(self.rates_hz)))


def fair_shares(wanted: Sequence[float], total: float) -> list[float]:
    """Max-min fair parts of `total`: nobody gets more than wanted, the rest is shared evenly."""
    shares = [0.0] * len(wanted)
    left = total
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    for position, i in enumerate(order):
        shares[i] = min(wanted[i], left / (len(order) - position))
        left -= shares[i]
    return shares


class Arrivals:
    """When the results of each image came.

    Args:
        observer: who takes them in.
        cameras: whose results.

    Attributes:
        tracks_ns: camera -> stamp of an image -> arrival of its tracks.
        detections_ns: likewise of its detections.
    """

    def __init__(self, observer: Observer, cameras: Sequence[str]) -> None:
        self.tracks_ns: dict[str, dict[int, int]] = {camera: {} for camera in cameras}
        self.detections_ns: dict[str, dict[int, int]] = {camera: {} for camera in cameras}
        for topic, arrived_ns in (
            ('tracks', self.tracks_ns),
            ('detections', self.detections_ns),
        ):
            for camera in cameras:
                # Raw, because decoding would take time from what is measured.
                observer.subscribe(
                    Detection2DArray,
                    in_camera(camera, topic),
                    partial(self._on_result, arrived_ns[camera]),
                    raw=True,
                )

    @staticmethod
    def _on_result(arrived_ns: dict[int, int], data: bytes) -> None:
        # CDR, little endian: four bytes of encapsulation, then the stamp of the header.
        sec, nanosec = struct.unpack_from('<iI', data, 4)
        arrived_ns.setdefault(sec * 1_000_000_000 + nanosec, time.time_ns())


def run_case(case: Case, options: argparse.Namespace, domain_id: int) -> dict[str, Any]:
    """Run one case and return its figures.

    Raises:
        LiveGraphError: `perception` or the cameras ended early, or nothing came.
    """
    parameters = [f'detector:detect_every_n:={case.every_n}', *options.parameter]
    if options.model:
        parameters.append(f'detector:model_path:={options.model}')
    if len(case.cameras) > 1:
        parameters.append(f'perception:cameras:={",".join(case.cameras)}')
    camera_command = [sys.executable, __file__, '--publish', case.text]
    camera_command += ['--size', '{}x{}'.format(*options.size)]
    camera_command += ['--seconds', str(options.seconds), '--clip', str(options.clip)]
    with Observer(domain_id) as observer:
        arrivals = Arrivals(observer, case.cameras)
        stamps_ns, usage = run_graph(
            observer,
            parameters,
            camera_command,
            domain_id=domain_id,
            has_begun=lambda: all(arrivals.detections_ns.values()),
            awaited='detections of every camera',
        )
    return {
        **_figures(case, stamps_ns, arrivals),
        'batch': int(observer.diagnostics.get('detector', {}).get('batch', 1)),
        'rss_mib': float(usage.rss_mib[-1, 1]) if len(usage.rss_mib) else float('nan'),
        'cpu_percent_of_one_core': usage.cpu_percent_of_one_core,
    }


def _figures(case: Case, stamps_ns: Sequence[Sequence[int]], arrivals: Arrivals) -> dict[str, Any]:
    per_camera = []
    latency = LatencyHistogram()
    detections: list[float] = []
    for camera, rate_hz, stamps in zip(case.cameras, case.rates_hz, stamps_ns, strict=True):
        tracks = arrivals.tracks_ns[camera]
        answered = [stamp for stamp in stamps if stamp in tracks]
        for stamp in answered:
            latency.add((tracks[stamp] - stamp) / 1e6)
        # By arrival: under overload what is in work at the end belongs to nobody.
        first_ns, last_ns = stamps[0], stamps[-1]
        found = sum(
            first_ns <= arrived_ns <= last_ns
            for arrived_ns in arrivals.detections_ns[camera].values()
        )
        detections.append(found / ((last_ns - first_ns) / 1e9))
        per_camera.append(
            {
                'rate_hz': rate_hz,
                'published': len(stamps),
                'without_tracks': len(stamps) - len(answered),
                'detections_hz': detections[-1],
            }
        )
    fair = fair_shares([rate_hz / case.every_n for rate_hz in case.rates_hz], sum(detections))
    shares = [got / due if due else 0.0 for got, due in zip(detections, fair, strict=True)]
    published = sum(len(stamps) for stamps in stamps_ns)
    summary = latency.summary()
    return {
        'wanted_detections_hz': sum(case.rates_hz) / case.every_n,
        'detections_hz': sum(detections),
        'lowest_share': min(shares),
        'tracks_p50_ms': summary.p50_ms,
        'tracks_p95_ms': summary.p95_ms,
        'without_tracks_percent': 100 * (published - summary.count) / published,
        'cameras': per_camera,
    }


def publish(case: Case, size_wh: tuple[int, int], seconds: float, clip: Path) -> int:
    """The cameras: publishes all their images at even rates and prints the stamps of each."""
    apply_transport_defaults()
    with media.open_source(clip) as source:
        images = [cv2.resize(frame.image, size_wh) for frame in islice(source, KEPT_FRAMES)]
    # Made beforehand: what is measured is the graph.
    messages = [frame_to_image(Frame(image, 0, 'camera')) for image in images]
    messages += messages[-2:0:-1]
    rclpy.init(args=[])
    node = Node('cameras')
    publishers = [
        node.create_publisher(Image, in_camera(camera, 'image_raw'), image_qos(5, reliable=True))
        for camera in case.cameras
    ]
    while not all(publisher.get_subscription_count() for publisher in publishers):
        time.sleep(0.05)
    start_s = time.monotonic()
    stamps_ns: list[list[int]] = [[] for _ in publishers]
    # When the next image of which camera is due; spread, as cameras without a common trigger are.
    due = [
        (start_s + index / len(publishers) / rate_hz, index)
        for index, rate_hz in enumerate(case.rates_hz)
    ]
    heapq.heapify(due)
    count = 0
    while due[0][0] < start_s + LEAD_IN_S + seconds:
        due_s, index = due[0]
        time.sleep(max(due_s - time.monotonic(), 0.0))
        stamp = time.time_ns()
        message = messages[count % len(messages)]
        message.header = make_header(stamp, 'camera')
        publishers[index].publish(message)
        if due_s >= start_s + LEAD_IN_S:
            stamps_ns[index].append(stamp)
        heapq.heapreplace(due, (due_s + 1 / case.rates_hz[index], index))
        count += index == 0
    print(json.dumps(stamps_ns), flush=True)
    time.sleep(SETTLE_S)  # the last results are still on their way
    return 0


def _median(rounds: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(figures.get(key, float('nan')) for figures in rounds)


COLUMNS: dict[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    'wanted /s': lambda rounds: f'{_median(rounds, "wanted_detections_hz"):.1f}',
    'detections /s': lambda rounds: f'{_median(rounds, "detections_hz"):.1f}',
    'of the first': lambda rounds: f'{_median(rounds, "of_the_first"):.2f}',
    'lowest share': lambda rounds: f'{_median(rounds, "lowest_share"):.2f}',
    'tracks p50 ms': lambda rounds: f'{_median(rounds, "tracks_p50_ms"):.1f}',
    'p95 ms': lambda rounds: f'{_median(rounds, "tracks_p95_ms"):.1f}',
    'no tracks %': lambda rounds: f'{_median(rounds, "without_tracks_percent"):.2f}',
    'RSS MiB': lambda rounds: f'{_median(rounds, "rss_mib"):.0f}',
    'CPU %': lambda rounds: f'{_median(rounds, "cpu_percent_of_one_core"):.0f}',
    'batch': lambda rounds: f'{_median(rounds, "batch"):.0f}',
}


@command('benchmark_cameras')
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'cases', nargs='*', type=Case.parse, help=f'CAMERASxHZ/N; default: {" ".join(CASES)}'
    )
    parser.add_argument(
        '--size', type=parse_size, default=(640, 480), help='width x height of the images'
    )
    parser.add_argument('--seconds', type=float, default=20.0, help='length of a run')
    parser.add_argument('--rounds', type=int, default=1, help='how often to run every case')
    parser.add_argument('--model', help='model file (default: the one of this package)')
    parser.add_argument(
        '--parameter',
        action='append',
        default=[],
        help='NODE:NAME:=VALUE, for detector, perception and metrics',
    )
    parser.add_argument('--clip', type=Path, default=CLIP, help='where the images come from')
    parser.add_argument('--domain-id', type=int, help='ROS domain of the measurement')
    parser.add_argument('--json', type=Path, help='write the figures of all rounds here')
    parser.add_argument('--publish', type=Case.parse, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.publish:
        return publish(options.publish, options.size, options.seconds, options.clip)
    cases = options.cases or [Case.parse(text) for text in CASES]
    domain_id = unused_domain_id() if options.domain_id is None else options.domain_id
    results: dict[str, list[dict[str, Any]]] = {case.text: [] for case in cases}
    for _ in range(options.rounds):
        for case in cases:
            figures = run_case(case, options, domain_id)
            if case is cases[0]:
                reference_hz = figures['detections_hz']
            figures['of_the_first'] = figures['detections_hz'] / reference_hz
            results[case.text].append(figures)
    table = Table('case', *COLUMNS)
    for text, rounds in results.items():
        table.add_row(text, *(column(rounds) for column in COLUMNS.values()))
    console = Console()
    # Narrower, in a pipe, it would cut the numbers.
    console.width = max(console.width, TABLE_WIDTH)
    console.print(table)
    if options.json:
        settings = {'size': options.size, 'seconds': options.seconds, 'model': options.model}
        text = json.dumps({'arguments': settings, 'cases': results}, indent=1)
        write_whole(options.json, lambda path: path.write_text(text))
    return 0


if __name__ == '__main__':
    sys.exit(main())
