"""Runs the real graph in real time: a camera process, `perception`, and an observer here.

benchmark_graph.py and `evaluate_tracking.py --live` are built on it. Run as a program it is the
camera: it publishes a video at an even rate and prints the stamps that it gave.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from numpy.typing import NDArray
from rclpy.context import Context
from rclpy.node import Node
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray

from edge_perception import media
from edge_perception.ros.images import frame_to_image
from edge_perception.ros.messages import stamp_ns
from edge_perception.ros.programs import end_process, node_command
from edge_perception.ros.qos import RESULTS_QOS, image_qos
from edge_perception.ros.release import make_executor
from edge_perception.ros.transport import apply_transport_defaults
from edge_perception.types import EdgePerceptionError, Frame

LEAD_IN_S = 3.0
"""Grey images before the video, not counted: the two sides of a connection find each other up to
a second apart, and best-effort images of that time are lost whatever the receiver does."""

_START_S = 60.0
_SETTLE_S = 2.0
_KEPT_FRAMES = 20


class LiveGraphError(EdgePerceptionError):
    """The graph did not start, or a process of it ended early."""


@dataclass(frozen=True)
class LiveRun:
    """What was sent and what came back.

    Attributes:
        stamps_ns: of every image of the video, in order.
        tracks: time of arrival in nanoseconds and message, in order of arrival.
        rss_mib: (n, 2) seconds since the start and resident memory of `perception`.
        cpu_percent_of_one_core: of `perception`, while images came.
        diagnostics: values of each node, as it said them last.
    """

    stamps_ns: list[int]
    tracks: list[tuple[int, Detection2DArray]] = field(default_factory=list)
    rss_mib: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)))
    cpu_percent_of_one_core: float = 0.0
    diagnostics: dict[str, dict[str, str]] = field(default_factory=dict)


def run_live(
    video: Path | str,
    *,
    rate_hz: float,
    parameters: Sequence[str] = (),
    size_wh: tuple[int, int] | None = None,
    seconds: float | None = None,
    domain_id: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> LiveRun:
    """Publish a video in real time into `perception` and collect its tracks.

    Args:
        video: whatever `media.open_source` opens.
        rate_hz: images a second.
        parameters: `NODE:NAME:=VALUE` for the nodes of `perception`.
        size_wh: scale the images to this; None leaves them.
        seconds: play the first frames to and fro for so long; None plays the video once.
        domain_id: ROS domain; by default one that depends on the process.
        progress: called with the number of tracks messages so far.

    Raises:
        LiveGraphError: `perception` or the camera ended early, or no tracks came.
    """
    domain_id = os.getpid() % 90 + 10 if domain_id is None else domain_id
    environment = {**os.environ, 'ROS_DOMAIN_ID': str(domain_id)}
    command = node_command('perception', parameters)
    camera_command = [sys.executable, __file__, str(video), '--rate', str(rate_hz)]
    if size_wh:
        camera_command += ['--size', f'{size_wh[0]}x{size_wh[1]}']
    if seconds:
        camera_command += ['--seconds', str(seconds)]
    apply_transport_defaults()
    context = Context()
    rclpy.init(args=[], context=context, domain_id=domain_id)
    node = Node('observer', context=context)
    executor = make_executor(context)
    executor.add_node(node)
    run = LiveRun([])

    def on_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            run.diagnostics[status.name.split(':')[0]] = {
                item.key: item.value for item in status.values
            }

    node.create_subscription(
        Detection2DArray,
        'tracks',
        lambda message: run.tracks.append((time.time_ns(), message)),
        RESULTS_QOS,
    )
    node.create_subscription(DiagnosticArray, '/diagnostics', on_diagnostics, 50)
    memory: list[tuple[float, float]] = []
    cpu_s: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        stamps_path = Path(folder) / 'stamps.json'
        perception = subprocess.Popen(command, env=environment)
        with stamps_path.open('w') as output:
            camera = subprocess.Popen(camera_command, env=environment, stdout=output)
        process = psutil.Process(perception.pid)
        started_s = sampled_s = time.monotonic()
        try:
            while camera.poll() is None:
                executor.spin_once(timeout_sec=0.1)
                now_s = time.monotonic()
                if perception.poll() is not None:
                    raise LiveGraphError(
                        f'perception ended with status {perception.returncode}; see its output'
                    )
                if not run.tracks and now_s - started_s > _START_S:
                    raise LiveGraphError(f'no tracks message within {_START_S:.0f} s')
                if run.tracks and now_s - sampled_s > 1.0:
                    sampled_s = now_s
                    memory.append((now_s - started_s, process.memory_info().rss / 2**20))
                    times = process.cpu_times()
                    cpu_s.append((now_s, times.user + times.system))
                    if progress:
                        progress(len(run.tracks))
        finally:
            for child in (camera, perception):
                end_process(child)
            executor.remove_node(node)
            node.destroy_node()
            executor.shutdown()
            context.try_shutdown()
        if camera.returncode:
            raise LiveGraphError(f'{video}: could not be published; see the output of the camera')
        run.stamps_ns.extend(json.loads(stamps_path.read_text()))
    percent = 0.0
    if len(cpu_s) > 1:
        percent = 100.0 * (cpu_s[-1][1] - cpu_s[0][1]) / (cpu_s[-1][0] - cpu_s[0][0])
    return LiveRun(
        run.stamps_ns, run.tracks, np.array(memory).reshape(-1, 2), percent, run.diagnostics
    )


def _frames(arguments: argparse.Namespace) -> Iterator[NDArray[np.uint8]]:
    """The images to publish, after those of the lead-in."""
    size_wh = tuple(int(part) for part in arguments.size.split('x')) if arguments.size else None

    def scaled(image: Any) -> NDArray[np.uint8]:
        return np.asarray(cv2.resize(image, size_wh), np.uint8) if size_wh else image

    with media.open_source(arguments.video) as source:
        first = scaled(next(source).image)
        lead_in = np.full_like(first, 114)
        for _ in range(int(LEAD_IN_S * arguments.rate)):
            yield lead_in
        if arguments.seconds is None:
            yield first
            for frame in source:
                yield scaled(frame.image)
            return
        # Decoding and scaling beforehand: what is measured is the graph.
        kept = [first, *(scaled(frame.image) for frame in islice(source, _KEPT_FRAMES - 1))]
    kept += kept[-2:0:-1]
    for i in range(int(arguments.seconds * arguments.rate)):
        yield kept[i % len(kept)]


def main() -> int:
    """The camera."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('video')
    parser.add_argument('--rate', type=float, required=True)
    parser.add_argument('--size')
    parser.add_argument('--seconds', type=float)
    arguments = parser.parse_args()
    apply_transport_defaults()
    rclpy.init(args=[])
    node = Node('camera')
    publisher = node.create_publisher(Image, 'image_raw', image_qos(5, reliable=True))
    while not publisher.get_subscription_count():
        time.sleep(0.05)
    start_s = time.monotonic()
    stamps_ns: list[int] = []
    try:
        for i, image in enumerate(_frames(arguments)):
            time.sleep(max(start_s + i / arguments.rate - time.monotonic(), 0.0))
            stamps_ns.append(time.time_ns())
            publisher.publish(frame_to_image(Frame(image, stamps_ns[-1], 'camera')))
    except (EdgePerceptionError, StopIteration) as error:
        print(f'{arguments.video}: {error}', file=sys.stderr)
        return 1
    print(json.dumps(stamps_ns[int(LEAD_IN_S * arguments.rate) :]), flush=True)
    time.sleep(_SETTLE_S)  # the last results are still on their way
    return 0


def answered_stamp_ns(message: Detection2DArray) -> int:
    """The stamp of the image that a tracks message answers."""
    return stamp_ns(message.header)


if __name__ == '__main__':
    sys.exit(main())
