"""gateway: the pipeline over HTTP: health, metrics, detection on request, video, a live page."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage
from vision_msgs.msg import Detection2DArray

from edge_perception.api import (
    DetectOptions,
    Gateway,
    GatewayError,
    Histogram,
    Limits,
    RequestError,
    Server,
    is_loopback,
    listen,
)
from edge_perception.api.app import LOOPBACK_NAMES
from edge_perception.api.schemas import (
    DetectedObject,
    DetectResult,
    GpuLoad,
    Health,
    Latency,
    Level,
    Metrics,
    NodeCounts,
    NodeHealth,
    ProcessLoad,
    RequestCounts,
    Track,
    Tracks,
)
from edge_perception.detection import DetectionError, Detector
from edge_perception.detection.backends import available_backends
from edge_perception.media.errors import MediaError
from edge_perception.media.pixels import decode_compressed
from edge_perception.metrics.latency import PROMETHEUS_BOUNDS_MS
from edge_perception.nodes.detector import BusyError, OtherBackendError, answer_request
from edge_perception.ros import process
from edge_perception.ros.cameras import (
    CamerasParameters,
    camera_names,
    in_camera,
    in_cameras,
)
from edge_perception.ros.lifecycle import ManagedNode, NodeParameters, Report
from edge_perception.ros.links import DetectAnswer, DetectRequest, Links, Stamped
from edge_perception.ros.messages import ClassNames, MessageError, message_to_tracks, stamp_ns
from edge_perception.ros.parameters import comma_separated, parameter
from edge_perception.ros.paths import DEFAULT_MODEL, find_model
from edge_perception.ros.qos import RESULTS_QOS, image_qos
from edge_perception.ros.statuses import NodeStatus, NodeStatuses, histograms_from
from edge_perception.ros.worker import call_nice, make_nice
from edge_perception.types import Tracks as TrackArrays
from edge_perception.types import TrackSource

TOKEN_VARIABLE = 'EDGE_PERCEPTION_TOKEN'
LEVELS: dict[bytes, Level] = {
    DiagnosticStatus.OK: 'ok',
    DiagnosticStatus.WARN: 'warn',
    DiagnosticStatus.ERROR: 'error',
}
METRICS_NODE = 'metrics'
RETRY_AFTER_S = 1
SWITCH_INTERVAL_S = 0.001


@dataclass(frozen=True)
class GatewayParameters(CamerasParameters, NodeParameters):
    """Parameters of the gateway node."""

    host: str = parameter(
        '127.0.0.1',
        'address to listen on; any but that of this machine alone needs a token',
    )
    port: int = parameter(8000, '0 takes a free one', minimum=0, maximum=65535)
    token_file: str = parameter(
        '',
        f'file with the token that clients must send; empty takes that of ${TOKEN_VARIABLE}',
    )
    nodes: str = parameter(
        'detector,tracker',
        'names of the nodes without which /health is 503, of each camera, separated by commas; '
        'empty for a gateway that only answers /detect',
    )
    camera: str = parameter(
        '', 'of several cameras, the one whose tracks and video are shown; empty for the first'
    )
    silent_after_s: float = parameter(
        3.0, 'a node that sends no diagnostics for longer is not healthy', minimum=1.5, live=True
    )
    max_body_mib: float = parameter(16.0, 'largest request, in MiB', minimum=0.01, maximum=1024.0)
    max_megapixels: float = parameter(
        40.0, 'largest image for /detect, decoded', minimum=0.01, maximum=1000.0
    )
    max_requests: int = parameter(
        4, '/detect requests at the same time; more are refused at once', minimum=1, maximum=64
    )
    request_timeout_s: float = parameter(
        10.0,
        'time for a request to arrive, and again for its answer',
        minimum=0.1,
        maximum=600.0,
    )
    max_viewers: int = parameter(8, 'open video streams', minimum=1, maximum=64)
    score_threshold: float = parameter(
        0.25,
        'of /detect, for requests that name none',
        minimum=0.0,
        maximum=1.0,
        live=True,
    )
    model_path: str = parameter(
        DEFAULT_MODEL, 'model for /detect where no detector runs in the same process'
    )
    device: str = parameter('auto', 'the same: auto, cpu, cuda or cuda:N')
    threads: int = parameter(
        0, 'the same: threads of the inference library; 0 leaves it to it', minimum=0, maximum=256
    )
    nice: int = parameter(10, 'niceness of what /detect does in this node', minimum=0, maximum=19)


class GatewayNode(ManagedNode):
    """Topics: /diagnostics, latency_histograms, tracks, image_annotated/compressed -> HTTP.

    Pictures are taken in only while somebody watches.
    """

    def __init__(self, *, links: Links | None = None, **kwargs: Any) -> None:
        self.url = ''
        self._detectors: dict[str, Detector] = {}
        self._detecting = threading.Lock()
        self._inferences: Counter[str] = Counter()
        self._niced = threading.local()
        super().__init__('gateway', GatewayParameters, links=links, **kwargs)

    def configure(self) -> None:
        """Take the port."""
        p = self.parameters
        self._token = read_token(p.token_file)
        self._is_loopback = is_loopback(p.host)
        if not self._is_loopback and not self._token:
            raise GatewayError(
                f'{p.host} can be reached from other machines: set a token in the environment '
                f'variable {TOKEN_VARIABLE} or in token_file, or listen on 127.0.0.1'
            )
        self._limits = Limits(
            max_body_bytes=round(p.max_body_mib * 2**20),
            max_pixels=round(p.max_megapixels * 1e6),
            max_requests=p.max_requests,
            request_timeout_s=p.request_timeout_s,
            max_viewers=p.max_viewers,
        )
        self._cameras = camera_names(p.cameras)
        self._shown = p.camera or self._cameras[0]
        if self._shown not in self._cameras:
            raise GatewayError(f'camera: {p.camera!r} is not one of cameras: {p.cameras!r}')
        # Now, and not when it is activated: a port in use shall end the start early.
        self._socket = listen(p.host, p.port)
        self.until_cleanup(lambda: self._socket.close())
        self.until_cleanup(self._close_detectors)

    def activate(self) -> None:
        """Listen, on the topics and on the port."""
        p = self.parameters
        self._statuses = NodeStatuses(self.get_namespace(), own_name='', cameras=self._cameras)
        self._histograms_of: dict[str, DiagnosticStatus] = {}
        self._newest_tracks: Stamped[TrackArrays] | bytes | None = None
        self._picture_subscription: Any = None
        self._statuses.listen(self, self._on_histograms)
        if self.links:
            tracks = self.links.of(self._shown).tracks
            self.until_deactivate(tracks.subscribe(self._on_tracks))
        else:
            # Raw: decoded when somebody asks.
            topic = in_camera(self._shown, 'tracks')
            self.subscribe(Detection2DArray, topic, self._on_tracks, RESULTS_QOS, raw=True)
        if self._socket.fileno() < 0:
            self._socket = listen(p.host, p.port)
        host, port = self._socket.getsockname()[:2]
        # Threads of the web server take turns with those of the live images: short ones.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._server = Server(self._make_gateway, self._socket)
        self.until_deactivate(self._server.stop)
        self._server.start()
        self.url = f'http://{f"[{host}]" if ":" in host else host}:{port}'
        self.get_logger().info(
            f'listening on {self.url}', event='listening', fields={'url': self.url}
        )
        timer = self.create_timer(0.2, self._follow_viewers)
        self.until_deactivate(self._unsubscribe_picture)
        self.until_deactivate(lambda: self.destroy_timer(timer))

    def diagnose(self, report: Report) -> None:
        """Address, requests."""
        for backend, count in self._inferences.items():
            report.values[f'inferences.{backend}'] = str(count)
        gateway = self._server.gateway if self.state_label == 'active' else None
        if gateway is None:
            return
        counts = gateway.request_counts()
        report.values['url'] = self.url
        report.values['viewers'] = str(counts.viewers)
        report.values['detect_requests'] = str(counts.detect)
        report.values['refused_requests'] = str(counts.refused)
        report.values['failed_requests'] = str(counts.failed)

    def _make_gateway(self) -> Gateway:
        return Gateway(
            self,
            limits=self._limits,
            token=self._token,
            hosts={*LOOPBACK_NAMES, self.parameters.host} if self._is_loopback else (),
            on_error=self.log_error_once_a_second,
        )

    # Topics, on the executor's thread.

    def _on_histograms(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self._histograms_of = {**self._histograms_of, status.name: status}

    def _on_tracks(self, tracks: Stamped[TrackArrays] | bytes) -> None:
        self._newest_tracks = tracks

    def _follow_viewers(self) -> None:
        gateway = self._server.gateway
        if gateway is not None and gateway.viewers:
            if self._picture_subscription is None:
                self._picture_subscription = self.create_subscription(
                    CompressedImage,
                    in_camera(self._shown, 'image_annotated/compressed'),
                    self._on_picture,
                    image_qos(2),
                )
        else:
            self._unsubscribe_picture()

    def _unsubscribe_picture(self) -> None:
        subscription, self._picture_subscription = self._picture_subscription, None
        if subscription is not None:
            self.destroy_subscription(subscription)

    def _on_picture(self, message: CompressedImage) -> None:
        gateway = self._server.gateway
        if gateway is not None and message.format.endswith('jpeg compressed bgr8'):
            self._server.call_soon(
                gateway.broadcast.publish, bytes(message.data), stamp_ns(message.header)
            )

    # The Pipeline of the application, on threads of the HTTP server.

    def health(self) -> Health:
        """State of the nodes, and the verdict of the metrics node where there is one."""
        p = self.parameters
        heard = self._statuses.heard(p.silent_after_s)
        required = in_cameras(self._cameras, comma_separated(p.nodes))
        nodes = {}
        problems = []
        for name in sorted({*self._statuses.of, *required}):
            nodes[name] = _node_health(self._statuses.of.get(name), name in heard)
            if name in required and (nodes[name].state != 'active' or name not in heard):
                problems.append(f'{name}: {nodes[name].message}')
        verdict = heard.get(METRICS_NODE)
        levels = {nodes[name].level for name in heard}
        if problems or 'error' in levels:
            status: Any = 'error'
        else:
            status = 'warn' if 'warn' in levels else 'ok'
        why = []
        if verdict is not None and verdict.state == 'active':
            why = [
                value for key, value in verdict.values.items() if key.startswith('why_no_output.')
            ]
            message = verdict.message if verdict.message != 'OK' or not problems else ''
        else:
            why = problems
            message = '; '.join(
                f'{name}: {nodes[name].message}' for name in heard if nodes[name].level != 'ok'
            )
        return Health(
            status=status,
            message=message or '; '.join(problems) or 'OK',
            nodes=nodes,
            why_no_output=why,
        )

    def metrics(self) -> Metrics:
        """Numbers from the diagnostics."""
        heard = self._statuses.heard(self.parameters.silent_after_s)
        summary = heard.get(METRICS_NODE)
        values = summary.values if summary and summary.state == 'active' else {}
        stages = {
            key.removesuffix('_ms.count'): _latency(values, key.removesuffix('.count'))
            for key in values
            if key.endswith('_ms.count')
        }
        inferences = {
            key.removeprefix('inferences.'): int(value)
            for key, value in values.items()
            if key.startswith('inferences.')
        } or dict(self._inferences)
        return Metrics(
            inference_count=sum(inferences.values()),
            latency_ms=stages.get('end_to_end', _latency({}, '')),
            fps=_number(values, 'fps'),
            cpu_percent=_number(values, 'cpu_percent'),
            backend_usage=inferences,
            window_s=_number(values, 'window_s'),
            stages=stages,
            nodes={
                name: NodeCounts(
                    fps=_number(status.values, 'fps'),
                    received=_integer(status.values, 'received'),
                    dropped=_integer(status.values, 'dropped'),
                    failed=_integer(status.values, 'failed'),
                )
                for name, status in heard.items()
                if 'received' in status.values or 'published' in status.values
            },
            memory_percent=_number(values, 'memory_percent'),
            temperature_c=_number(values, 'temperature_c'),
            processes={
                name: ProcessLoad.model_validate(load)
                for name, load in _grouped(values, 'process.').items()
                if len(load) == len(ProcessLoad.model_fields)
            },
            gpus=[GpuLoad.model_validate(gpu) for gpu in _grouped(values, 'gpu.').values()],
            requests=RequestCounts(
                detect=0, refused=0, failed=0, viewers=0, detect_latency_ms=_latency({}, '')
            ),
        )

    def histograms(self) -> dict[tuple[str, str], Histogram]:
        """Durations by node and stage, since each node's start."""
        bounds_s = [bound / 1e3 for bound in PROMETHEUS_BOUNDS_MS]
        histograms = {}
        for status in self._histograms_of.values():
            full_name, _, totals = histograms_from(status)
            node = self._statuses.relative_name(full_name)
            for stage, total in totals.items():
                histograms[node, stage] = Histogram(
                    bounds_s, total.cumulative(), total.count, total.sum_ms / 1e3
                )
        return histograms

    def tracks(self) -> Tracks:
        """The newest tracks."""
        newest = self._newest_tracks
        if newest is None:
            return Tracks(stamp_ns=None, age_s=None, frame_id='', tracks=[])
        from_message = isinstance(newest, bytes)
        if isinstance(newest, bytes):
            try:
                newest = message_to_tracks(
                    deserialize_message(newest, Detection2DArray), ClassNames()
                )
            except MessageError as error:
                raise RequestError(503, f'the tracks are malformed: {error}') from error
        return Tracks(
            stamp_ns=newest.stamp_ns,
            age_s=(self.now_ns() - newest.stamp_ns) / 1e9,
            frame_id=newest.frame_id,
            tracks=_tracks(newest, is_complete=not from_message),
        )

    def detect(self, image: bytes, options: DetectOptions, deadline_s: float) -> DetectResult:
        """Run the detector on an image file."""
        if not hasattr(self._niced, 'done'):
            make_nice(self.parameters.nice)
            self._niced.done = True
        try:
            pixels = decode_compressed(image, oriented=True)
        except MediaError as error:
            raise RequestError(400, str(error)) from error
        threshold = options.score_threshold
        request = DetectRequest(
            pixels,
            self.parameters.score_threshold if threshold is None else threshold,
            options.classes,
            options.backend,
        )
        try:
            if self.links and self.links.detect_requests.has_subscribers:
                answer = self._ask_running(request, deadline_s)
            else:
                answer = self._detect_here(request, deadline_s)
        except (BusyError, FutureTimeoutError) as error:
            raise RequestError(
                503,
                str(error) or 'the live images left no time for it: try again',
                retry_after_s=RETRY_AFTER_S,
            ) from error
        except (DetectionError, OtherBackendError) as error:
            raise RequestError(422, str(error)) from error
        height, width = pixels.shape[:2]
        return _detect_result(answer, width, height)

    def _ask_running(self, request: DetectRequest, deadline_s: float) -> DetectAnswer:
        """By the detector of this process, in the time that its images leave."""
        assert self.links is not None
        self.links.detect_requests.send(request)
        try:
            return request.answer.result(max(deadline_s - time.monotonic(), 0.0))
        except FutureTimeoutError:
            request.answer.cancel()
            raise

    def _detect_here(self, request: DetectRequest, deadline_s: float) -> DetectAnswer:
        """By a detector of this node, loaded when it is first needed; one image at a time."""
        if not self._detecting.acquire(timeout=max(deadline_s - time.monotonic(), 0.0)):
            raise BusyError('other requests took all the time: try again')
        try:
            detector = self._detector(request.backend or 'auto')
            answer = answer_request(detector, request)
            self._inferences[answer.backend] += 1
            return answer
        finally:
            self._detecting.release()

    def _detector(self, backend: str) -> Detector:
        if backend not in self._detectors:
            known = ('auto', *sorted(available_backends()))
            if backend not in known:
                raise RequestError(422, f'backend: expected one of {", ".join(known)}')
            p = self.parameters
            try:
                self._detectors[backend] = call_nice(
                    p.nice,
                    lambda: Detector(
                        backend,
                        model_path=find_model(p.model_path),
                        device=p.device,
                        threads=p.threads or None,
                        spin=False,
                    ),
                )
            except DetectionError as error:
                # The client is to blame only where it chose.
                raise RequestError(503 if backend == 'auto' else 422, str(error)) from error
        return self._detectors[backend]

    def _close_detectors(self) -> None:
        with self._detecting:
            for detector in self._detectors.values():
                detector.close()
            self._detectors.clear()


def read_token(path: str) -> str:
    """The token of a file, or of the environment where `path` is empty.

    Raises:
        GatewayError: the file cannot be read, or holds no token.
    """
    if not path:
        return os.environ.get(TOKEN_VARIABLE, '').strip()
    try:
        token = Path(path).read_text(encoding='utf-8').strip()
    except (OSError, UnicodeDecodeError) as error:
        raise GatewayError(f'token_file {path}: {error}') from error
    if not token or len(token.split()) > 1:
        raise GatewayError(f'token_file {path}: expected one word, the token')
    return token


def _node_health(status: NodeStatus | None, is_heard: bool) -> NodeHealth:
    if status is None:
        return NodeHealth(
            state='unknown',
            level='stale',
            message='not heard yet: starting, or not there',
            age_s=None,
        )
    age_s = time.monotonic() - status.heard_s
    if not is_heard:
        message = f'silent for {age_s:.0f} s'
        return NodeHealth(state='unknown', level='stale', message=message, age_s=age_s)
    return NodeHealth(
        state=status.state or 'unknown',
        level=LEVELS.get(status.level, 'stale'),
        message=status.message,
        age_s=age_s,
    )


def _number(values: dict[str, str], key: str) -> float | None:
    text = values.get(key)
    return None if text is None else float(text)


def _integer(values: dict[str, str], key: str) -> int | None:
    text = values.get(key)
    return None if text is None else int(text)


def _latency(values: dict[str, str], key: str) -> Latency:
    return Latency(
        count=int(values.get(f'{key}.count', 0)),
        avg=_number(values, f'{key}.avg'),
        p50=_number(values, f'{key}.p50'),
        p90=_number(values, f'{key}.p90'),
        p95=_number(values, f'{key}.p95'),
        p99=_number(values, f'{key}.p99'),
        max=_number(values, f'{key}.max'),
    )


def _grouped(values: dict[str, str], prefix: str) -> dict[str, dict[str, str]]:
    """Values of keys such as process.NAME.rss_mib, by name and last part."""
    groups: dict[str, dict[str, str]] = {}
    for key, value in values.items():
        if key.startswith(prefix):
            name, _, field = key.removeprefix(prefix).rpartition('.')
            groups.setdefault(name, {})[field] = value
    return groups


def _tracks(stamped: Stamped[TrackArrays], *, is_complete: bool) -> list[Track]:
    """The tracks; age and source are not in messages."""
    arrays = stamped.value
    return [
        Track(
            id=track_id,
            label=stamped.names.get(class_id, str(class_id)),
            confidence=round(score, 4),
            x1=round(box[0], 2),
            y1=round(box[1], 2),
            x2=round(box[2], 2),
            y2=round(box[3], 2),
            age_s=age_s if is_complete else None,
            time_since_detection_s=since_s if is_complete else None,
            source=TrackSource(source).name.lower() if is_complete else None,  # type: ignore[arg-type]
        )
        for track_id, class_id, score, box, age_s, since_s, source in zip(
            arrays.track_id.tolist(),
            arrays.class_id.tolist(),
            arrays.score.tolist(),
            arrays.xyxy.tolist(),
            arrays.age_s.tolist(),
            arrays.time_since_detection_s.tolist(),
            arrays.source.tolist(),
            strict=True,
        )
    ]


def _detect_result(answer: DetectAnswer, width: int, height: int) -> DetectResult:
    found = answer.detections
    return DetectResult(
        detections=[
            DetectedObject(
                x1=round(box[0], 2),
                y1=round(box[1], 2),
                x2=round(box[2], 2),
                y2=round(box[3], 2),
                class_id=class_id,
                label=answer.names.get(class_id, str(class_id)),
                confidence=round(min(score, 1.0), 4),
            )
            for box, class_id, score in zip(
                found.xyxy.tolist(), found.class_id.tolist(), found.score.tolist(), strict=True
            )
        ],
        width=width,
        height=height,
        backend=answer.backend,
        latency_ms=dict(answer.timings_ms),
    )


def main() -> None:
    """Run the node alone."""
    process.main(GatewayNode)


if __name__ == '__main__':
    main()
