#!/usr/bin/env python3
"""Measure the running graph: images of another process in, tracks messages out.

    python model_tools/benchmark_graph.py --size 1920x1080 --rate 30 --every-n 5 --seconds 60

One process publishes bgr8 images in real time, `perception` runs as it does for a user, and this
process takes in the tracks. Printed, and with --json written: images lost, latency from the
image's stamp to the arrival of its tracks message, memory and CPU time of `perception`.

--runs repeats it; latency figures are then the median over the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.table import Table
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray

from edge_perception import media
from edge_perception.metrics.latency import LatencyHistogram
from edge_perception.ros.images import frame_to_image
from edge_perception.ros.messages import stamp_ns
from edge_perception.ros.process import make_executor
from edge_perception.ros.qos import RESULTS_QOS, image_qos
from edge_perception.ros.transport import apply_transport_defaults
from edge_perception.types import Frame

CLIP = Path(__file__).resolve().parent.parent / 'test' / 'data' / 'pedestrians.mp4'
KEPT_FRAMES = 20
START_S = 60.0
SETTLE_S = 2.0
# Not counted: the two sides of a connection find each other up to a second apart, and best-effort
# images of that time are lost whatever the receiver does.
LEAD_IN_S = 3.0


def publish(size_wh: tuple[int, int], rate_hz: float, seconds: float, clip: Path) -> None:
    """Publish frames of a clip, scaled, to and fro, at an even rate; print their stamps."""
    frames = []
    with media.open_source(clip) as source:
        for frame, _ in zip(source, range(KEPT_FRAMES), strict=False):
            frames.append(np.asarray(cv2.resize(frame.image, size_wh), np.uint8))
    frames += frames[-2:0:-1]
    node = Node('camera')
    publisher = node.create_publisher(Image, 'image_raw', image_qos(5, reliable=True))
    while not publisher.get_subscription_count():
        time.sleep(0.05)
    start_s = time.monotonic()
    stamps_ns = []
    lead_in = int(LEAD_IN_S * rate_hz)
    for i in range(lead_in + int(seconds * rate_hz)):
        time.sleep(max(start_s + i / rate_hz - time.monotonic(), 0.0))
        stamps_ns.append(time.time_ns())
        publisher.publish(frame_to_image(Frame(frames[i % len(frames)], stamps_ns[-1], 'camera')))
    print(json.dumps(stamps_ns[lead_in:]), flush=True)
    time.sleep(SETTLE_S)


def measure(args: argparse.Namespace, output: Path) -> dict[str, Any]:
    """One run; the camera writes its stamps to `output`."""
    environment = {**os.environ, 'ROS_DOMAIN_ID': str(args.domain_id)}
    node = Node('observer')
    latency_ms: dict[int, float] = {}
    stages: dict[str, str] = {}

    def on_tracks(message: Detection2DArray) -> None:
        stamp = stamp_ns(message.header)
        latency_ms[stamp] = (time.time_ns() - stamp) / 1e6

    def on_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            for item in status.values:
                if item.key.endswith('_ms.p95'):
                    stages[f'{status.name.split(":")[0]} {item.key}'] = item.value

    node.create_subscription(Detection2DArray, 'tracks', on_tracks, RESULTS_QOS)
    node.create_subscription(DiagnosticArray, '/diagnostics', on_diagnostics, 50)
    executor = make_executor()
    executor.add_node(node)
    command = [sys.executable, '-m', 'edge_perception.nodes.perception', '--ros-args']
    command += ['-p', f'detector:detect_every_n:={args.every_n}']
    if args.model:
        command += ['-p', f'detector:model_path:={args.model}']
    for extra in args.parameter:
        command += ['-p', extra]
    perception = subprocess.Popen(command, env=environment)
    with output.open('w') as stamps_file:
        camera = subprocess.Popen(
            [sys.executable, __file__, '--publish', *sys.argv[1:]],
            env=environment,
            stdout=stamps_file,
        )
    process = psutil.Process(perception.pid)
    rss_mib: list[tuple[float, float]] = []
    cpu_s = 0.0
    started_s = sampled_s = time.monotonic()
    try:
        while camera.poll() is None:
            executor.spin_once(timeout_sec=0.1)
            now_s = time.monotonic()
            if perception.poll() is not None:
                sys.exit(f'perception ended with status {perception.returncode}')
            if not latency_ms and now_s - started_s > START_S:
                sys.exit(f'no tracks message within {START_S:.0f} s')
            if latency_ms and now_s - sampled_s > 1.0:
                sampled_s = now_s
                rss_mib.append((now_s - started_s, process.memory_info().rss / 2**20))
                times = process.cpu_times()
                cpu_s = times.user + times.system
    finally:
        for child in (camera, perception):
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
        perception.wait(10.0)
        executor.remove_node(node)
        executor.shutdown()
        node.destroy_node()
    published = json.loads(output.read_text())
    lost = [i for i, stamp in enumerate(published) if stamp not in latency_ms]
    latency = LatencyHistogram()
    for stamp in published:
        if stamp in latency_ms:
            latency.add(latency_ms[stamp])
    summary = latency.summary()
    # The first quarter is start-up: caches, pools and the first detections.
    settled = rss_mib[len(rss_mib) // 4 :]
    times_s, sizes_mib = np.array(settled).reshape(-1, 2).T
    slope = np.polyfit(times_s, sizes_mib, 1)[0] if len(settled) > 2 else float('nan')
    return {
        'published': len(published),
        'answered': len(published) - len(lost),
        'lost': len(lost),
        'latency_p50_ms': summary.p50_ms,
        'latency_p95_ms': summary.p95_ms,
        'latency_p99_ms': summary.p99_ms,
        'latency_max_ms': summary.max_ms,
        'cpu_percent_of_one_core': 100.0 * cpu_s / (time.monotonic() - started_s),
        'lost_frames': lost,
        'rss_mib': settled[-1][1] if settled else float('nan'),
        'rss_growth_mib_per_minute': float(slope) * 60.0,
        'stages': stages,
    }


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--size', default='1920x1080', help='width x height of the images')
    parser.add_argument('--rate', type=float, default=30.0, help='images a second')
    parser.add_argument('--seconds', type=float, default=30.0, help='length of a run')
    parser.add_argument('--every-n', type=int, default=5, help='detect on every N-th image')
    parser.add_argument('--runs', type=int, default=1)
    parser.add_argument('--model', help='model file (default: the one of this package)')
    parser.add_argument(
        '--parameter', action='append', default=[], help='NODE:NAME:=VALUE for perception'
    )
    parser.add_argument('--clip', type=Path, default=CLIP, help='where the images come from')
    parser.add_argument('--domain-id', type=int, default=os.getpid() % 90 + 10)
    parser.add_argument('--json', type=Path, help='write the figures of all runs here')
    parser.add_argument('--publish', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    apply_transport_defaults()
    if args.publish:
        rclpy.init(args=[])
        width, height = (int(part) for part in args.size.split('x'))
        publish((width, height), args.rate, args.seconds, args.clip)
        return
    rclpy.init(args=[], domain_id=args.domain_id, signal_handler_options=SignalHandlerOptions.NO)
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(args, Path(folder) / 'stamps.json') for _ in range(args.runs)]
    table = Table('', *(f'run {i + 1}' for i in range(len(runs))), 'median')
    for key in (key for key, value in runs[0].items() if isinstance(value, (int, float))):
        values = [run[key] for run in runs]
        table.add_row(
            key, *(f'{value:.2f}' for value in values), f'{statistics.median(values):.2f}'
        )
    Console().print(table)
    if args.json:
        temporary = args.json.with_name(f'{args.json.name}.part')
        temporary.write_text(json.dumps({'arguments': vars(args), 'runs': runs}, default=str))
        temporary.replace(args.json)


if __name__ == '__main__':
    main()
