"""Runs the real graph in real time: a camera process, `perception`, and an observer here.

What the tools that measure the graph share, and the measurement of one video (`run_live`), on
which benchmark_graph.py and `evaluate_tracking.py --live` are built. Run as a program it is the
camera: it publishes a video at an even rate and prints the stamps that it gave.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import rclpy
from command_line import parse_size
from diagnostic_msgs.msg import DiagnosticArray
from numpy.typing import NDArray
from rclpy.context import Context
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray

from edge_perception import media
from edge_perception.ros.images import frame_to_image
from edge_perception.ros.messages import stamp_ns
from edge_perception.ros.programs import end_process, node_command
from edge_perception.ros.qos import RESULTS_QOS, image_qos
from edge_perception.ros.release import make_executor
from edge_perception.ros.statuses import values_by_node
from edge_perception.ros.transport import apply_transport_defaults, unused_domain_id
from edge_perception.types import EdgePerceptionError, Frame

CLIP = Path(__file__).resolve().parent.parent / 'test' / 'data' / 'pedestrians.mp4'
LEAD_IN_S = 3.0
"""Grey images before the video, not counted: the two sides of a connection find each other up to
a second apart, and best-effort images of that time are lost whatever the receiver does."""

_START_S = 90.0
_SETTLE_S = 2.0
_KEPT_FRAMES = 20


class LiveGraphError(EdgePerceptionError):
    """The graph did not start, or a process of it ended early."""


def clip_parameters(clip: Path, *, every_n: int, gateway: bool = True) -> list[str]:
    """Parameters of a `perception` that has all members and plays a clip over and over.

    Args:
        clip: the video.
        every_n: detect on every N-th image.
        gateway: serve HTTP, on a free port (see `gateway_port`).
    """
    members = 'source,detector,tracker,visualizer,metrics' + (',gateway' if gateway else '')
    return [
        f'perception:members:={members}',
        f'source:source:={json.dumps(str(clip))}',
        'source:loop:=true',
        f'detector:detect_every_n:={every_n}',
        'gateway:port:=0',
    ]


def gateway_port(log: Path) -> int | None:
    """The port that the gateway of a `perception` listens on; None while it says none."""
    found = re.search(r'listening on http://127\.0\.0\.1:(\d+)', log.read_text())
    return int(found[1]) if found else None


def start_perception(
    parameters: Sequence[str], *, domain_id: int, log: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start `perception` as a process.

    Args:
        parameters: `NODE:NAME:=VALUE` for its nodes.
        domain_id: ROS domain.
        log: file for what it says; None lets it say it here.
    """
    command = node_command('perception', parameters)
    if log is None:
        return subprocess.Popen(command, env=_in_domain(domain_id))
    with log.open('wb') as output:
        return subprocess.Popen(
            command, env=_in_domain(domain_id), stdout=output, stderr=subprocess.STDOUT
        )


def _in_domain(domain_id: int) -> dict[str, str]:
    return {**os.environ, 'ROS_DOMAIN_ID': str(domain_id)}


class Observer:
    """A node of this process, which takes in what others publish while it is spun.

    Args:
        domain_id: ROS domain.

    Attributes:
        diagnostics: values of each node, as it said them last.
    """

    def __init__(self, domain_id: int) -> None:
        apply_transport_defaults()
        self._context = Context()
        rclpy.init(args=[], context=self._context, domain_id=domain_id)
        self._node = Node('observer', context=self._context)
        self._executor = make_executor(self._context)
        self._executor.add_node(self._node)
        self.diagnostics: dict[str, dict[str, str]] = {}
        self._node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 50)

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.remove_node(self._node)
        self._node.destroy_node()
        self._executor.shutdown()
        self._context.try_shutdown()

    def subscribe(
        self, kind: type, topic: str, handle: Callable[[Any], None], *, raw: bool = False
    ) -> None:
        """Call `handle` with each message of a topic of results; with its bytes when `raw`."""
        self._node.create_subscription(kind, topic, handle, RESULTS_QOS, raw=raw)

    def spin_once(self, timeout_s: float = 0.1) -> None:
        """Take in a message, or wait so long for one."""
        self._executor.spin_once(timeout_sec=timeout_s)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.diagnostics.update(values_by_node(message))


@dataclass(frozen=True)
class Usage:
    """What `perception` used while results came, looked at every second.

    Attributes:
        rss_mib: (n, 2) seconds since the start and resident memory.
        cpu_percent_of_one_core: mean; NaN when it was not looked at twice.
    """

    rss_mib: NDArray[np.float64]
    cpu_percent_of_one_core: float


def run_graph(
    observer: Observer,
    parameters: Sequence[str],
    camera_command: Sequence[str],
    *,
    domain_id: int,
    has_begun: Callable[[], object],
    awaited: str,
) -> tuple[Any, Usage]:
    """Let a process publish images into `perception`, until it ends.

    Args:
        observer: takes in what comes meanwhile.
        parameters: `NODE:NAME:=VALUE` for the nodes of `perception`.
        camera_command: of the process that publishes, and prints JSON at its end.
        domain_id: ROS domain.
        has_begun: whether results come.
        awaited: the first of these, in words.

    Returns:
        What the camera printed, and what `perception` used.

    Raises:
        LiveGraphError: `perception` or the camera ended early, or no results came.
    """
    samples: list[tuple[float, float, float]] = []  # seconds, MiB, seconds of CPU
    with tempfile.TemporaryDirectory() as folder:
        output_path = Path(folder) / 'output.json'
        perception = start_perception(parameters, domain_id=domain_id)
        with output_path.open('w') as output:
            camera = subprocess.Popen(camera_command, env=_in_domain(domain_id), stdout=output)
        process = psutil.Process(perception.pid)
        started_s = sampled_s = time.monotonic()
        try:
            while camera.poll() is None:
                observer.spin_once()
                now_s = time.monotonic()
                if perception.poll() is not None:
                    raise LiveGraphError(
                        f'perception ended with status {perception.returncode}; see its output'
                    )
                begun = has_begun()
                if not begun and now_s - started_s > _START_S:
                    raise LiveGraphError(f'waited {_START_S:.0f} s for {awaited}')
                if begun and now_s - sampled_s > 1.0:
                    sampled_s = now_s
                    times = process.cpu_times()
                    rss_mib = process.memory_info().rss / 2**20
                    samples.append((now_s - started_s, rss_mib, times.user + times.system))
        finally:
            for child in (camera, perception):
                end_process(child)
        if camera.returncode:
            raise LiveGraphError('the images could not be published; see the output of the camera')
        printed = json.loads(output_path.read_text())
    times_s, rss_mib, cpu_s = np.array(samples).reshape(-1, 3).T
    percent = 100.0 * np.ptp(cpu_s) / np.ptp(times_s) if len(samples) > 1 else float('nan')
    return printed, Usage(np.column_stack([times_s, rss_mib]), float(percent))


@dataclass(frozen=True)
class LiveRun:
    """What was sent and what came back.

    Attributes:
        stamps_ns: of every image of the video, in order.
        tracks: time of arrival in nanoseconds and message, in order of arrival.
        usage: of `perception`.
        diagnostics: values of each node, as it said them last.
    """

    stamps_ns: list[int]
    tracks: list[tuple[int, Detection2DArray]]
    usage: Usage
    diagnostics: dict[str, dict[str, str]]


def run_live(
    video: Path | str,
    *,
    rate_hz: float,
    parameters: Sequence[str] = (),
    size_wh: tuple[int, int] | None = None,
    seconds: float | None = None,
    domain_id: int | None = None,
) -> LiveRun:
    """Publish a video in real time into `perception` and collect its tracks.

    Args:
        video: whatever `media.open_source` opens.
        rate_hz: images a second.
        parameters: `NODE:NAME:=VALUE` for the nodes of `perception`.
        size_wh: scale the images to this; None leaves them.
        seconds: play the first frames to and fro for so long; None plays the video once.
        domain_id: ROS domain; by default one that nobody uses.

    Raises:
        LiveGraphError: `perception` or the camera ended early, or no tracks came.
    """
    domain_id = unused_domain_id() if domain_id is None else domain_id
    camera_command = [sys.executable, __file__, str(video), '--rate', str(rate_hz)]
    if size_wh:
        camera_command += ['--size', f'{size_wh[0]}x{size_wh[1]}']
    if seconds:
        camera_command += ['--seconds', str(seconds)]
    # As bytes: messages are many objects, and Python's search for circles among them would stop
    # this process for longer than an image takes.
    tracks: list[tuple[int, bytes]] = []
    with Observer(domain_id) as observer:
        observer.subscribe(
            Detection2DArray,
            'tracks',
            lambda message: tracks.append((time.time_ns(), message)),
            raw=True,
        )
        stamps_ns, usage = run_graph(
            observer,
            parameters,
            camera_command,
            domain_id=domain_id,
            has_begun=lambda: tracks,
            awaited='a tracks message',
        )
    messages = [
        (arrived_ns, deserialize_message(message, Detection2DArray))
        for arrived_ns, message in tracks
    ]
    return LiveRun(stamps_ns, messages, usage, observer.diagnostics)


def _frames(arguments: argparse.Namespace) -> Iterator[NDArray[np.uint8]]:
    """The images to publish, after those of the lead-in."""

    def scaled(image: Any) -> NDArray[np.uint8]:
        return np.asarray(cv2.resize(image, arguments.size), np.uint8) if arguments.size else image

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
    parser.add_argument('--size', type=parse_size)
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
