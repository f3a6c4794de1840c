"""demo: runs `perception` on a clip, camera or bag, shows how it does and keeps what it found.

Usage: demo [--source clip.mp4] [--model M] [--backend B] [--every-n N] [--out out/demo]

It leaves annotated.mp4, tracks.txt (MOTChallenge format), bag/ (rosbag2), report.json and
perception.log in the folder given by --out. The exit status is 1 when fewer than 95 % of the
images got a tracks message.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Detection2DArray, LabelInfo

from edge_perception.media import MediaError
from edge_perception.media.bag import BagWriter
from edge_perception.media.mot import write_tracks
from edge_perception.media.video import VideoWriter
from edge_perception.metrics.fps import FPSMeter
from edge_perception.metrics.latency import LatencyHistogram
from edge_perception.ros.images import image_to_frame
from edge_perception.ros.messages import ClassNames, message_to_tracks, stamp_ns
from edge_perception.ros.paths import share_folder
from edge_perception.ros.programs import end_process, node_command
from edge_perception.ros.qos import LATCHED_QOS, RESULTS_QOS, image_qos
from edge_perception.ros.statuses import values_by_node
from edge_perception.ros.transport import apply_transport_defaults

ANSWERED_AT_LEAST_PERCENT = 95.0
LAST_MESSAGES_S = 3.0
"""How long the last results may take after the source has said that it is through."""


class Recorder(Node):
    """Takes in everything that the pipeline publishes, and writes it down."""

    def __init__(self, out: Path) -> None:
        super().__init__('demo')
        self.image_stamps_ns: set[int] = set()
        self.tracks: dict[int, Any] = {}
        self.latency = LatencyHistogram()
        self.fps = FPSMeter()
        self.diagnostics: dict[str, dict[str, str]] = {}
        self.annotated = 0
        self.detections = 0
        self._names = ClassNames()
        self._video_path = out / 'annotated.mp4'
        self._video: VideoWriter | None = None
        self._bag = BagWriter(out / 'bag')
        images = image_qos(30, reliable=True)
        for topic, kind, qos, handle in (
            ('image_raw/compressed', CompressedImage, images, self._on_image),
            ('detections', Detection2DArray, RESULTS_QOS, self._on_detections),
            ('tracks', Detection2DArray, RESULTS_QOS, self._on_tracks),
            ('label_info', LabelInfo, LATCHED_QOS, None),
            ('/diagnostics', DiagnosticArray, 50, self._on_diagnostics),
        ):
            self._record(topic, kind, qos, handle)
        self.create_subscription(Image, 'image_annotated', self._on_annotated, images)

    def _record(self, topic: str, kind: type, qos: Any, handle: Any) -> None:
        name = self.resolve_topic_name(topic)
        msgtype = f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'

        def on_message(cdr: bytes, info: dict[str, int]) -> None:
            now_ns = time.time_ns()
            # The bag has the time of publication, so that what it tells of the pipeline does
            # not depend on how busy this process is.
            published_ns = info['source_timestamp'] or now_ns
            self._bag.write(name, msgtype, published_ns, cdr, latched=qos is LATCHED_QOS)
            if handle:
                handle(deserialize_message(cdr, kind), now_ns)

        self.create_subscription(kind, topic, on_message, qos, raw=True)

    def _on_image(self, message: CompressedImage, now_ns: int) -> None:
        self.image_stamps_ns.add(stamp_ns(message.header))

    def _on_detections(self, message: Detection2DArray, now_ns: int) -> None:
        self.detections += 1

    def _on_tracks(self, message: Detection2DArray, now_ns: int) -> None:
        stamped = message_to_tracks(message, self._names)
        self.tracks[stamped.stamp_ns] = stamped.value
        self.latency.add((now_ns - stamped.stamp_ns) / 1e6)
        self.fps.tick()

    def _on_diagnostics(self, message: DiagnosticArray, now_ns: int) -> None:
        self.diagnostics.update(values_by_node(message))

    def _on_annotated(self, message: Image) -> None:
        if self._video is None:
            rate_hz = float(self.diagnostics.get('source', {}).get('rate_hz', 0) or 0) or 10.0
            self._video = VideoWriter(self._video_path, rate_hz)
        frame = image_to_frame(message)
        self._video.write(frame.image, frame.stamp_ns)
        self.annotated += 1

    def close(self) -> None:
        """Finish the files."""
        self._bag.close()
        if self._video is not None:
            self._video.close()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='demo', description='Detect and track on a clip, camera or bag, in real time.'
    )
    parser.add_argument(
        '--source', help='camera index, video, image folder, bag or URL; default: the demo clip'
    )
    parser.add_argument('--model', help='model file (default: the one of this package)')
    parser.add_argument('--backend', help='auto, onnx, pytorch ... (default: auto)')
    parser.add_argument(
        '--every-n', type=_positive, metavar='N', help='run the detector on every N-th image'
    )
    parser.add_argument(
        '--port',
        type=int,
        default=8000,
        help='of the live page on this machine; 0 for none (default: 8000)',
    )
    parser.add_argument('--out', type=Path, default=Path('out/demo'), help='folder for results')
    return parser.parse_args(arguments)


def start_perception(args: argparse.Namespace, port: int, log: Any) -> subprocess.Popen[bytes]:
    """Start the pipeline as a process of its own, as a launch file would."""
    source = args.source or str(share_folder() / 'data' / 'pedestrians.mp4')
    members = 'source,detector,tracker,visualizer,metrics' + (',gateway' if port else '')
    parameters = [
        f'perception:members:={members}',
        # Quoted, since a camera index would be read as a number.
        f'source:source:={json.dumps(source)}',
        'source:wait_for_subscriber:=true',
    ]
    if port:
        parameters.append(f'gateway:port:={port}')
    if args.model:
        parameters.append(f'detector:model_path:={args.model}')
    if args.backend:
        parameters.append(f'detector:backend:={args.backend}')
    if args.every_n:
        parameters.append(f'detector:detect_every_n:={args.every_n}')
    command = node_command('perception', parameters)
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def free_port(port: int, console: Console) -> int:
    """`port`, or 0 with a word to the user when somebody else has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('127.0.0.1', port))
        except OSError as error:
            console.print(f'no live page: port {port}: {error.strerror} (see --port)')
            return 0
    return port


def frame_numbers(recorder: Recorder) -> dict[int, int]:
    """Number of each frame, from 1, by its stamp.

    A recorded source has a rate, which tells the number of a frame also after a lost one.
    """
    stamps = sorted(recorder.image_stamps_ns | recorder.tracks.keys())
    rate_hz = recorder.diagnostics.get('source', {}).get('rate_hz', 'None')
    if rate_hz == 'None' or not stamps:
        return {stamp: number for number, stamp in enumerate(stamps, 1)}
    period_ns = 1e9 / float(rate_hz)
    return {stamp: round((stamp - stamps[0]) / period_ns) + 1 for stamp in stamps}


def write_results(recorder: Recorder, out: Path, duration_s: float) -> dict[str, Any]:
    """Write tracks.txt and report.json; returns the report."""
    numbers = frame_numbers(recorder)
    write_tracks(
        out / 'tracks.txt',
        ((numbers[stamp], tracks) for stamp, tracks in sorted(recorder.tracks.items())),
    )
    source = recorder.diagnostics.get('source', {})
    frames = max(int(source.get('published', 0)), len(numbers))
    ids = [tracks.track_id for tracks in recorder.tracks.values()]
    answered = len(recorder.tracks)
    report = {
        'frames': frames,
        'tracks_messages': answered,
        'answered_percent': 100.0 * answered / frames if frames else 0.0,
        'detections_messages': recorder.detections,
        'annotated_frames': recorder.annotated,
        'track_ids': int(np.unique(np.concatenate(ids)).size) if ids else 0,
        'duration_s': duration_s,
        'tracks_latency': asdict(recorder.latency.summary()),
        'diagnostics': recorder.diagnostics,
    }
    temporary = out / 'report.json.part'
    temporary.write_text(json.dumps(report, indent=2) + '\n')
    temporary.replace(out / 'report.json')
    return report


def print_summary(console: Console, report: dict[str, Any], out: Path) -> None:
    """What a person wants to know at the end."""
    latency, detector = report['tracks_latency'], report['diagnostics'].get('detector', {})
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row(
        'images answered',
        f'{report["tracks_messages"]} of {report["frames"]} ({report["answered_percent"]:.1f} %)',
    )
    table.add_row(
        'image to tracks',
        f'p50 {latency["p50_ms"]:.1f} ms, p95 {latency["p95_ms"]:.1f} ms, '
        f'p99 {latency["p99_ms"]:.1f} ms',
    )
    table.add_row(
        'detector',
        f'{detector.get("backend", "?")} on {detector.get("device", "?")}, '
        f'every {detector.get("detect_every_n", "?")}. image, inference p50 '
        f'{detector.get("inference_ms.p50", "?")} ms',
    )
    table.add_row('objects', f'{report["track_ids"]} track ids')
    table.add_row(
        'results', ', '.join(str(out / name) for name in ('annotated.mp4', 'tracks.txt', 'bag'))
    )
    console.print(table)


def follow(
    recorder: Recorder,
    perception: subprocess.Popen[bytes],
    console: Console,
    stopping: threading.Event,
) -> None:
    """Take in messages until the source has ended, the pipeline has, or Ctrl-C."""
    # Not the one of the nodes: rclpy's EventsExecutor does not tell when a message was sent.
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)
    progress = Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    task = progress.add_task('loading the model', total=None)
    ended_s: float | None = None
    drawn_s = 0.0
    # Without a terminal there is no line to draw anew: one is printed now and then instead.
    period_s = 0.1 if console.is_terminal else 5.0
    with progress if console.is_terminal else nullcontext():
        while not stopping.is_set() and perception.poll() is None:
            executor.spin_once(timeout_sec=0.1)
            source = recorder.diagnostics.get('source', {})
            if source.get('finished') == 'true':
                ended_s = ended_s or time.monotonic()
                complete = len(recorder.tracks) >= int(source['published'])
                if complete or time.monotonic() - ended_s > LAST_MESSAGES_S:
                    break
            if recorder.tracks and time.monotonic() - drawn_s > period_s:
                drawn_s = time.monotonic()
                newest = recorder.tracks[max(recorder.tracks)]
                count = source.get('frame_count', '')
                total = int(count) if count.isdecimal() else None
                line = (
                    f'{recorder.fps.fps:5.1f} fps  p95 '
                    f'{recorder.latency.summary().p95_ms:5.1f} ms  {len(newest):2d} tracks'
                )
                if console.is_terminal:
                    progress.update(
                        task,
                        completed=len(recorder.tracks),
                        total=total,
                        description=line,
                    )
                else:
                    of_total = '' if total is None else f'/{total}'
                    console.print(f'{len(recorder.tracks)}{of_total}  {line}')
    executor.remove_node(recorder)
    executor.shutdown()


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the demo; returns the exit status."""
    # From here on there is something to end: the pipeline, and files that are half-written.
    stopping = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda signum, frame: stopping.set())
    out: Path = args.out
    # Only what an earlier demo left: the folder may be anything the user named.
    out.mkdir(parents=True, exist_ok=True)
    for name in ('annotated.mp4', 'tracks.txt', 'report.json', 'perception.log'):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / 'bag', ignore_errors=True)
    port = free_port(args.port, console) if args.port else 0
    if port:
        console.print(f'live page: http://127.0.0.1:{port}/')
    recorder = Recorder(out)
    log_path = out / 'perception.log'
    started_s = time.monotonic()
    with log_path.open('wb') as log:
        perception = start_perception(args, port, log)
        try:
            follow(recorder, perception, console, stopping)
            early = perception.poll()
        finally:
            end_process(perception)
            recorder.close()
    report = write_results(recorder, out, time.monotonic() - started_s)
    recorder.destroy_node()
    if early is not None and not report['tracks_messages'] and not stopping.is_set():
        lines = log_path.read_text(errors='replace').splitlines()
        reasons = [line for line in lines if '[ERROR]' in line or '[FATAL]' in line] or lines[-1:]
        console.print('\n'.join(reasons), style='red', markup=False, highlight=False)
        console.print(f'perception could not start; all it said is in {log_path}', style='red')
        return 1
    print_summary(console, report, out)
    if report['answered_percent'] < ANSWERED_AT_LEAST_PERCENT and not stopping.is_set():
        console.print(
            f'only {report["answered_percent"]:.1f} % of the images got a tracks message '
            f'(at least {ANSWERED_AT_LEAST_PERCENT:.0f} % expected); see {log_path}',
            style='red',
        )
        return 1
    return 0


def main() -> None:
    """Run the program."""
    args = parse_arguments()
    console = Console()
    apply_transport_defaults()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        status = run(args, console)
    except MediaError as error:
        console.print(str(error), style='red', markup=False, highlight=False)
        status = 1
    finally:
        rclpy.try_shutdown()
    sys.stdout.flush()
    sys.exit(status)


if __name__ == '__main__':
    main()
