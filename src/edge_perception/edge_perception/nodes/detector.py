"""detector: runs the network on every N-th image and publishes what it finds."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Any

from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, LabelInfo

from edge_perception.detection.backends import available_backends
from edge_perception.detection.decode import LAYOUT_NAMES
from edge_perception.detection.detector import Detector
from edge_perception.ros import process
from edge_perception.ros.cameras import CamerasParameters, camera_names, in_camera
from edge_perception.ros.image_input import ImageInput, ImageInputParameters, StampWatch
from edge_perception.ros.lifecycle import Camera, ManagedNode, NodeParameters, Report
from edge_perception.ros.links import DetectAnswer, DetectRequest, Links, Stamped
from edge_perception.ros.messages import label_info, make_header, stamp_ns, to_message
from edge_perception.ros.pace import Pace
from edge_perception.ros.parameters import comma_separated, parameter
from edge_perception.ros.paths import DEFAULT_MODEL, find_model
from edge_perception.ros.qos import LATCHED_QOS, RESULTS_QOS
from edge_perception.ros.worker import Lane, Turns, Worker, call_nice
from edge_perception.types import Detections, EdgePerceptionError, Frame

# When nothing was found for a while, every so often the scores below the threshold are looked at.
PROBE_AFTER_S = 3.0
PROBE_SCORE = 0.01
CLEARLY_SOMETHING = 0.25
"""Score above which a detection that is left out deserves a warning."""
REQUESTS_WAITING = 4
SETTINGS_S = 1.0


class BusyError(EdgePerceptionError):
    """The detector has no time for a request now."""


class HangError(EdgePerceptionError):
    """The inference engine does not come back."""


class OtherBackendError(EdgePerceptionError):
    """A request asks for another backend than the one that runs."""


@dataclass(frozen=True)
class DetectorParameters(ImageInputParameters, CamerasParameters, NodeParameters):
    """Parameters of the detector node."""

    model_path: str = parameter(
        DEFAULT_MODEL, 'model file, or the name of one in share/edge_perception/models'
    )
    backend: str = parameter(
        'auto',
        'what runs the model; auto goes by file type and hardware',
        choices=('auto', *sorted(available_backends())),
    )
    device: str = parameter('auto', 'auto, cpu, cuda or cuda:N')
    schedule: str = parameter(
        'every_n',
        'detect on every N-th image, or on those that the tracker asks for',
        choices=('every_n', 'adaptive'),
        live=True,
    )
    detect_every_n: int = parameter(
        5,
        'run the detector on every N-th image; with an adaptive schedule while nobody asks',
        minimum=1,
        maximum=1000,
        live=True,
    )
    score_threshold: float = parameter(
        0.1,
        'leave out detections with a lower score; the tracker makes use of weak ones',
        minimum=0.0,
        maximum=1.0,
        live=True,
    )
    iou_threshold: float = parameter(
        0.7,
        'of two boxes of a class that overlap more (IoU), the weaker is left out',
        minimum=0.0,
        maximum=1.0,
        live=True,
    )
    classes: str = parameter(
        '', 'class names to keep, separated by commas; empty keeps all', live=True
    )
    max_detections: int = parameter(
        300, 'keep at most this many detections of an image', minimum=1, maximum=10000
    )
    image_size: int = parameter(
        0, 'longer side of the network input in pixels; 0 takes the one of the model', minimum=0
    )
    layout: str = parameter(
        'auto',
        'output layout of the model, where neither metadata nor shape tell it',
        choices=('auto', *LAYOUT_NAMES),
    )
    labels: str = parameter(
        '',
        'file with class names (a line each), or names separated by commas; '
        'empty takes those of the model',
    )
    max_batch: int = parameter(
        8,
        'with several cameras: put at most so many waiting images through the network at once, '
        'where that costs less than one by one',
        minimum=1,
        maximum=64,
    )
    threads: int = parameter(
        0, 'threads of the inference library; 0 leaves it to the library', minimum=0, maximum=256
    )
    hang_after_s: float = parameter(
        5.0,
        'an inference that takes longer is reported as an error, in seconds',
        minimum=0.1,
        maximum=3600.0,
        live=True,
    )
    nice: int = parameter(
        5,
        'niceness of the inference threads, so that the tracker answers in time',
        minimum=0,
        maximum=19,
    )


# Images that the tracker may still ask for, and how long it may ask for none before the detector
# goes back to every N-th: a tracker that died must not stop the detections.
RECENT_FRAMES = 8
UNASKED_S = 3.0


class DetectorCamera(Camera):
    """One camera of the detector: which of its images are due, and what was found in them.

    Attributes:
        seen: images since the stream began.
        wanted_ns: stamp of the image that the tracker asked for last.
        lane: images on their way to the network.
        input: the image subscription, where images do not come from a node of the process.
        links: channels of the camera, where nodes share the process.
    """

    node: DetectorNode

    def __init__(self, node: DetectorNode, name: str) -> None:
        super().__init__(node, name)
        self.links = node.links.of(name) if node.links else None
        self._publisher = node.advertise(
            Detection2DArray, in_camera(name, 'detections'), RESULTS_QOS
        )
        self._label_publisher = node.advertise(
            LabelInfo, in_camera(name, 'label_info'), LATCHED_QOS
        )

    def prepare(self, turns: Turns[tuple[DetectorCamera, Frame]]) -> None:
        """Begin anew. Of all cameras this comes before the first image of any."""
        self.seen = 0
        self.wanted_ns = 0
        self.found_s = self.probed_s = time.monotonic()
        self.scores_seen: deque[float] = deque(maxlen=10)
        self.stamps = StampWatch(self.node, self)
        self.lane: Lane[tuple[DetectorCamera, Frame]] = turns.lane(
            waited=lambda ms: self.add_latency('queue', ms),
            on_error=self.log_error_once_a_second,
        )
        self._recent: OrderedDict[int, Frame] = OrderedDict()
        self._asked_s = -math.inf
        self.input: ImageInput | None = None

    def start(self, labels: LabelInfo) -> None:
        """Take images in, until the node is deactivated."""
        node = self.node
        self._label_publisher.publish(labels)
        if self.links:
            node.until_deactivate(self.links.frames.subscribe(self._on_shared_frame))
            node.until_deactivate(self.links.wanted_stamps_ns.subscribe(self._on_wanted))
            node.until_deactivate(self.links.tracks.subscribe(lambda _: node.pace.answered()))
            return
        self.input = ImageInput(
            node,
            node.parameters,
            self._on_frame,
            self.log_error_once_a_second,
            accept=self._is_due,
            camera=self,
        )
        node.until_deactivate(self.input.close)
        node.subscribe(
            Header,
            in_camera(self.name, 'detect_request'),
            lambda header: self._on_wanted(stamp_ns(header)),
            RESULTS_QOS,
        )

    def counts(self) -> dict[str, int]:
        """What became of the images since activation."""
        counts = self.lane.counts
        return {
            'received': self.seen,
            'detected': counts.processed,
            'dropped': counts.dropped,
            'failed': counts.failed + (self.input.failed if self.input else 0),
        }

    def diagnose(self, report: Report) -> None:
        """Counts, images, scores."""
        if self.name:
            self.node.diagnose_backend(report)
        if self.node.state_label != 'active':
            return
        report.values.update({key: str(count) for key, count in self.counts().items()})
        self.stamps.diagnose(report)
        if self.input:
            self.input.diagnose(report)
        if self.scores_seen:
            self._diagnose_scores(report)

    def _diagnose_scores(self, report: Report) -> None:
        """Why nothing is found, as far as scores tell."""
        p = self.node.parameters
        best = max(self.scores_seen)
        silent_s = time.monotonic() - self.found_s
        report.values['best_score'] = f'{best:.3f}'
        kinds = f'of {p.classes} ' if p.classes else ''
        text = (
            f'nothing {kinds}found for {silent_s:.0f} s: the best score seen is {best:.2f}, '
            f'score_threshold is {p.score_threshold:.2f}'
        )
        if best >= CLEARLY_SOMETHING:
            report.warn(text)
        else:
            report.note(text)

    @property
    def images_until_due(self) -> int:
        """Which of the following images is due, 1 being the next."""
        return 1 + -self.seen % self.node.parameters.detect_every_n

    def _is_due(self, stamp_ns: int) -> bool:
        if self.stamps.jumped_back(stamp_ns):
            self.seen = 0
        is_due = self.images_until_due == 1
        self.seen += 1
        self.node.watch_pace()
        # Who is to choose among images needs them all.
        return is_due or self.node.parameters.schedule == 'adaptive'

    def _on_shared_frame(self, frame: Frame) -> None:
        if self._is_due(frame.stamp_ns):
            self._on_frame(frame)

    def _on_frame(self, frame: Frame) -> None:
        if self.node.parameters.schedule == 'every_n':
            self.lane.offer((self, frame))
            return
        self._recent[frame.stamp_ns] = frame
        if len(self._recent) > RECENT_FRAMES:
            self._recent.popitem(last=False)
        # A request may come before its image.
        is_wanted = frame.stamp_ns == self.wanted_ns
        is_alone = time.monotonic() - self._asked_s > UNASKED_S
        is_nth = (self.seen - 1) % self.node.parameters.detect_every_n == 0
        if is_wanted or (is_alone and is_nth):
            self.lane.offer((self, frame))

    def _on_wanted(self, stamp_ns: int) -> None:
        """The tracker asks for a detection on the image of this stamp."""
        self._asked_s = time.monotonic()
        self.wanted_ns = stamp_ns
        frame = self._recent.pop(stamp_ns, None)
        if frame is not None and self.node.parameters.schedule == 'adaptive':
            self.lane.offer((self, frame))

    def is_probe_due(self, now_s: float) -> bool:
        """Whether to look at the scores below the threshold, too, because nothing is found."""
        return (
            now_s - self.found_s > PROBE_AFTER_S
            and now_s - self.probed_s > 1.0
            and self.node.parameters.score_threshold > PROBE_SCORE
        )

    def probed(self, candidates: Detections, now_s: float) -> Detections:
        """Note the best score of candidates; returns those above the threshold."""
        self.probed_s = now_s
        self.scores_seen.append(float(candidates.score.max(initial=0.0)))
        return candidates[candidates.score >= self.node.parameters.score_threshold]

    def send(self, result: Stamped[Detections], now_s: float) -> None:
        """Hand on what was found."""
        if len(result.value):
            self.found_s = now_s
            self.scores_seen.clear()
        if self.links:
            self.links.detections.send(result)
        if self._publisher.get_subscription_count():
            started_s = time.perf_counter()
            self._publisher.publish(to_message(result))
            self.add_latency('publish', (time.perf_counter() - started_s) * 1e3)
        self.add_latency('end_to_end', (self.node.now_ns() - result.stamp_ns) / 1e6)
        self.tick()


class DetectorNode(ManagedNode):
    """Topics: image_raw -> detections, label_info (latched); of each camera, where there are
    several.

    One network serves all cameras, in fair turn: the newest due image of each.
    """

    cameras: tuple[DetectorCamera, ...]
    pace: Pace
    _worker: Worker

    def __init__(self, *, links: Links | None = None, **kwargs: Any) -> None:
        self._detector: Detector | None = None
        self._settings = threading.Lock()
        self._is_hanging = False
        self._inferences: Counter[str] = Counter()
        self._batch = 1
        super().__init__('detector', DetectorParameters, links=links, **kwargs)
        if links:
            # Also while it cannot answer: whoever asks learns why.
            links.detect_requests.subscribe(self._on_request)

    def configure(self) -> None:
        """Load and warm the model."""
        p = self.parameters
        names = camera_names(p.cameras)
        detector = self._detector = call_nice(p.nice, lambda: self._load(p))
        self.until_cleanup(self._close)
        self.get_logger().info(detector.reason)
        self._batch = 1
        if (most := min(len(names), p.max_batch)) > 1:
            self._batch = call_nice(p.nice, lambda: detector.best_batch(most))
            self.get_logger().info(
                f'{len(names)} cameras, '
                + (f'up to {self._batch} images at once' if self._batch > 1 else 'one by one')
            )
        self.cameras = tuple(DetectorCamera(self, name) for name in names)
        self.until_cleanup(self._forget_cameras)

    def _close(self) -> None:
        detector, self._detector = self._detector, None
        # What an engine still works with cannot be freed: it goes with the thread, if that ends.
        is_in_use, self._is_hanging = self._is_hanging, False
        if detector is not None and not is_in_use:
            detector.close()

    def _forget_cameras(self) -> None:
        self.cameras = ()

    @staticmethod
    def _load(p: DetectorParameters) -> Detector:
        detector = Detector(
            model_path=find_model(p.model_path),
            backend=p.backend,
            device=p.device,
            score_threshold=p.score_threshold,
            iou_threshold=p.iou_threshold,
            classes=comma_separated(p.classes),
            max_detections=p.max_detections,
            image_size=p.image_size or None,
            layout=p.layout,
            labels=(comma_separated(p.labels) if ',' in p.labels else p.labels) or None,
            threads=p.threads or None,
            spin=False,  # idle threads that spin take the CPU from the tracker
        )
        detector.warm_up()
        return detector

    def activate(self) -> None:
        """Start to detect.

        Raises:
            HangError: an inference of the time before has still not ended.
        """
        assert self._detector is not None
        if self._is_hanging and self._worker.busy_s:
            raise HangError('an inference of before hangs: clean up and configure the node anew')
        self.pace = Pace()
        self._worker = Worker(
            name='detect', on_error=self.log_error_once_a_second, nice=self.parameters.nice
        )
        turns = self._worker.turns(
            self._detect,
            at_once=self._batch,
            # The network's input would grow to hold images of several shapes.
            alike=_shape if self._detector.preprocess.rectangular else None,
        )
        self._requests = self._worker.lane(
            self._answer,
            depth=REQUESTS_WAITING,
            delay_s=self.pace.delay_s,
            dropped=lambda request: _refuse(
                request, BusyError('the detector has too many requests')
            ),
        )
        for camera in self.cameras:
            camera.prepare(turns)
        self.until_deactivate(self._stop)
        self._worker.start()
        labels = label_info(
            self._detector.names,
            self.parameters.score_threshold,
            make_header(self.now_ns(), ''),
        )
        for camera in self.cameras:
            camera.start(labels)

    def _stop(self) -> None:
        self._is_hanging = not self._worker.stop()
        if self._is_hanging:
            self.get_logger().error(
                'an inference does not end: its thread is left behind', event='inference_hangs'
            )

    def parameters_changed(self, updated: DetectorParameters) -> None:
        """Thresholds and classes go to the detector; detect_every_n is read at each image."""
        if self._detector is not None:
            if not self._settings.acquire(timeout=SETTINGS_S):
                raise BusyError('an inference that holds the settings does not end')
            try:
                self._apply(self._detector, updated)
            finally:
                self._settings.release()

    @staticmethod
    def _apply(detector: Detector, p: DetectorParameters) -> None:
        detector.classes = comma_separated(p.classes)
        detector.score_threshold = p.score_threshold
        detector.iou_threshold = p.iou_threshold

    def diagnose(self, report: Report) -> None:
        """Backend in use, counts."""
        for backend, count in self._inferences.items():
            report.values[f'inferences.{backend}'] = str(count)
        self.diagnose_backend(report)
        if self._detector is None:
            return
        report.values['backend_reason'] = self._detector.reason
        if self.state_label != 'active':
            return
        report.values['requests'] = str(self._requests.counts.processed)
        if (busy_s := self._worker.busy_s) > self.parameters.hang_after_s:
            report.error(f'an inference has not ended for {busy_s:.0f} s: the engine hangs')
        if len(self.cameras) == 1 and not self.cameras[0].name:
            self.cameras[0].diagnose(report)
            return
        # What is to be said of each camera stands in its own status.
        report.values['cameras'] = ','.join(camera.name for camera in self.cameras)
        report.values['batch'] = str(self._batch)
        totals: Counter[str] = Counter()
        for camera in self.cameras:
            totals.update(camera.counts())
        report.values.update({key: str(total) for key, total in totals.items()})

    def diagnose_backend(self, report: Report) -> None:
        """What runs the network, for the node or one of its cameras."""
        p = self.parameters
        report.values['model'] = p.model_path
        report.values['schedule'] = p.schedule
        report.values['detect_every_n'] = str(p.detect_every_n)
        if self._detector is not None:
            report.hardware_id = self._detector.device
            report.values['backend'] = self._detector.backend_name
            report.values['device'] = self._detector.device

    def watch_pace(self) -> None:
        """An image of a camera has come."""
        if self.parameters.schedule == 'adaptive':
            self.pace.arrived(1, 1)  # the tracker may want the very next one
            return
        # Between two images of the first camera that is due come one of each other.
        until_due = min(camera.images_until_due for camera in self.cameras)
        self.pace.arrived(1 + (until_due - 1) * len(self.cameras), self.parameters.detect_every_n)

    def _detect(self, items: list[tuple[DetectorCamera, Frame]]) -> None:
        """Detect on images of one or more cameras."""
        detector = self._detector
        assert detector is not None  # the worker ends before the model is freed
        started_s = time.perf_counter()
        now_s = time.monotonic()
        probed = {camera for camera, _ in items if camera.is_probe_due(now_s)}
        frames = [frame for _, frame in items]
        if probed:
            with self._settings:
                detector.score_threshold = PROBE_SCORE
                try:
                    found = detector(frames)
                finally:
                    self._apply(detector, self.parameters)
        else:
            found = detector(frames)
        self.pace.worked(time.perf_counter() - started_s)
        self._inferences[detector.backend_name] += len(items)
        for (camera, frame), detections in zip(items, found, strict=True):
            # The images of a batch have all waited for its end.
            for stage, latency_ms in detector.timings.items():
                camera.add_latency(stage, latency_ms)
            if camera in probed:
                detections = camera.probed(detections, now_s)
            elif probed:
                detections = detections[detections.score >= self.parameters.score_threshold]
            camera.send(Stamped(detections, frame.stamp_ns, frame.frame_id, detector.names), now_s)

    def _on_request(self, request: DetectRequest) -> None:
        detector = self._detector
        if detector is None or self.state_label != 'active':
            _refuse(request, BusyError(f'the detector is {self.state_label}'))
        elif request.backend not in ('', 'auto', detector.backend_name):
            text = f'backend: requests share the running detector ({detector.backend_name})'
            _refuse(request, OtherBackendError(text))
        elif self.pace.is_full:
            text = 'the live images leave the detector no time: raise detect_every_n'
            _refuse(request, BusyError(text))
        else:
            self._requests.offer(request)

    def _answer(self, request: DetectRequest) -> None:
        detector = self._detector
        assert detector is not None  # the worker ends before the model is freed
        if not request.answer.set_running_or_notify_cancel():
            return  # whoever asked has given up
        started_s = time.perf_counter()
        try:
            with self._settings:
                try:
                    answer = answer_request(detector, request)
                finally:
                    self._apply(detector, self.parameters)
        except Exception as error:
            request.answer.set_exception(error)
            return
        self.pace.worked(time.perf_counter() - started_s)
        self._inferences[detector.backend_name] += 1
        request.answer.set_result(answer)


def answer_request(detector: Detector, request: DetectRequest) -> DetectAnswer:
    """What a detector finds on the image of a request, whose settings it then has.

    Raises:
        DetectionError: a class that the model does not know, or the inference failed.
    """
    detector.classes = request.classes
    if request.score_threshold is not None:
        detector.score_threshold = request.score_threshold
    detections = detector(request.image)
    return DetectAnswer(detections, detector.names, detector.backend_name, dict(detector.timings))


def _shape(item: tuple[DetectorCamera, Frame]) -> tuple[int, ...]:
    return item[1].image.shape


def _refuse(request: DetectRequest, error: Exception) -> None:
    """Answer with an error, unless whoever asked has given up."""
    if request.answer.set_running_or_notify_cancel():
        request.answer.set_exception(error)


def main() -> None:
    """Run the node alone."""
    process.main(DetectorNode)


if __name__ == '__main__':
    main()
