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
from edge_perception.ros.image_input import ImageInput, ImageInputParameters, StampWatch
from edge_perception.ros.lifecycle import ManagedNode, NodeParameters, Report
from edge_perception.ros.links import DetectAnswer, DetectRequest, Links, Stamped
from edge_perception.ros.messages import label_info, make_header, stamp_ns, to_message
from edge_perception.ros.pace import Pace
from edge_perception.ros.parameters import parameter
from edge_perception.ros.paths import DEFAULT_MODEL, find_model
from edge_perception.ros.qos import LATCHED_QOS, RESULTS_QOS
from edge_perception.ros.worker import Worker, call_nice
from edge_perception.types import Detections, EdgePerceptionError, Frame

# When nothing was found for a while, every so often the scores below the threshold are looked at.
PROBE_AFTER_S = 3.0
PROBE_SCORE = 0.01
CLEARLY_SOMETHING = 0.25
"""Score above which a detection that is left out deserves a warning."""
REQUESTS_WAITING = 4


class BusyError(EdgePerceptionError):
    """The detector has no time for a request now."""


class OtherBackendError(EdgePerceptionError):
    """A request asks for another backend than the one that runs."""


@dataclass(frozen=True)
class DetectorParameters(ImageInputParameters, NodeParameters):
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
    threads: int = parameter(
        0, 'threads of the inference library; 0 leaves it to the library', minimum=0, maximum=256
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


def class_list(text: str) -> list[str]:
    """Names from a comma-separated parameter."""
    return [name.strip() for name in text.split(',') if name.strip()]


class DetectorNode(ManagedNode):
    """Topics: image_raw -> detections, label_info (latched)."""

    def __init__(self, *, links: Links | None = None, **kwargs: Any) -> None:
        self._detector: Detector | None = None
        self._settings = threading.Lock()
        self._inferences: Counter[str] = Counter()
        super().__init__('detector', DetectorParameters, links=links, **kwargs)
        if links:
            # Also while it cannot answer: whoever asks learns why.
            links.detect_requests.subscribe(self._on_request)

    def configure(self) -> None:
        """Load and warm the model."""
        p = self.parameters
        detector = self._detector = call_nice(p.nice, lambda: self._load(p))
        self.until_cleanup(self._close)
        self.get_logger().info(detector.reason)
        self._publisher = self.advertise(Detection2DArray, 'detections', RESULTS_QOS)
        self._label_publisher = self.advertise(LabelInfo, 'label_info', LATCHED_QOS)

    def _close(self) -> None:
        detector, self._detector = self._detector, None
        if detector is not None:
            detector.close()

    @staticmethod
    def _load(p: DetectorParameters) -> Detector:
        detector = Detector(
            model_path=find_model(p.model_path),
            backend=p.backend,
            device=p.device,
            score_threshold=p.score_threshold,
            iou_threshold=p.iou_threshold,
            classes=class_list(p.classes),
            max_detections=p.max_detections,
            image_size=p.image_size or None,
            layout=p.layout,
            labels=(class_list(p.labels) if ',' in p.labels else p.labels) or None,
            threads=p.threads or None,
            spin=False,  # idle threads that spin take the CPU from the tracker
        )
        detector.warm_up()
        return detector

    def activate(self) -> None:
        """Start to detect."""
        self._seen = 0
        self._stamps = StampWatch(self)
        self._pace = Pace()
        self._found_s = self._probed_s = time.monotonic()
        self._scores_seen: deque[float] = deque(maxlen=10)
        self._worker = Worker(
            name='detect', on_error=self.log_error_once_a_second, nice=self.parameters.nice
        )
        self._lane = self._worker.lane(
            self._detect, waited=lambda ms: self.latencies.add('queue', ms)
        )
        self._requests = self._worker.lane(
            self._answer,
            depth=REQUESTS_WAITING,
            delay_s=self._pace.delay_s,
            dropped=lambda request: _refuse(
                request, BusyError('the detector has too many requests')
            ),
        )
        self._worker.start()
        self.until_deactivate(self._worker.stop)
        assert self._detector is not None
        self._label_publisher.publish(
            label_info(
                self._detector.names,
                self.parameters.score_threshold,
                make_header(self.now_ns(), ''),
            )
        )
        self._recent: OrderedDict[int, Frame] = OrderedDict()
        self._asked_s = -math.inf
        self._wanted_ns = 0
        self._input: ImageInput | None = None
        if self.links:
            self.until_deactivate(self.links.frames.subscribe(self._on_shared_frame))
            self.until_deactivate(self.links.wanted_stamps_ns.subscribe(self._on_wanted))
            self.until_deactivate(self.links.tracks.subscribe(lambda _: self._pace.answered()))
        else:
            self._input = ImageInput(
                self,
                self.parameters,
                self._on_frame,
                self.log_error_once_a_second,
                accept=self._is_due,
            )
            self.until_deactivate(self._input.close)
            subscription = self.create_subscription(
                Header, 'detect_request', lambda header: self._on_wanted(stamp_ns(header)), 10
            )
            self.until_deactivate(lambda: self.destroy_subscription(subscription))

    def parameters_changed(self, updated: DetectorParameters) -> None:
        """Thresholds and classes go to the detector; detect_every_n is read at each image."""
        if self._detector is not None:
            with self._settings:
                self._apply(self._detector, updated)

    @staticmethod
    def _apply(detector: Detector, p: DetectorParameters) -> None:
        detector.classes = class_list(p.classes)
        detector.score_threshold = p.score_threshold
        detector.iou_threshold = p.iou_threshold

    def diagnose(self, report: Report) -> None:
        """Backend in use, counts."""
        p = self.parameters
        for backend, count in self._inferences.items():
            report.values[f'inferences.{backend}'] = str(count)
        report.values['model'] = p.model_path
        report.values['schedule'] = p.schedule
        report.values['detect_every_n'] = str(p.detect_every_n)
        if self._detector is None:
            return
        report.hardware_id = self._detector.device
        report.values['backend'] = self._detector.backend_name
        report.values['device'] = self._detector.device
        report.values['backend_reason'] = self._detector.reason
        if self.state_label == 'active':
            counts = self._lane.counts
            failed = counts.failed + (self._input.failed if self._input else 0)
            report.values['received'] = str(self._seen)
            report.values['detected'] = str(counts.processed)
            report.values['dropped'] = str(counts.dropped)
            report.values['failed'] = str(failed)
            report.values['requests'] = str(self._requests.counts.processed)
            self._stamps.diagnose(report)
            if self._input:
                self._input.diagnose(report)
            if self._scores_seen:
                self._diagnose_scores(report)

    def _diagnose_scores(self, report: Report) -> None:
        """Why nothing is found, as far as scores tell."""
        p = self.parameters
        best = max(self._scores_seen)
        silent_s = time.monotonic() - self._found_s
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

    def _is_due(self, stamp_ns: int) -> bool:
        if self._stamps.jumped_back(stamp_ns):
            self._seen = 0
        every = self.parameters.detect_every_n
        since_due = self._seen % every
        self._seen += 1
        if self.parameters.schedule == 'adaptive':
            self._pace.arrived(1, 1)  # the tracker may want the very next one
            return True  # who is to choose among images needs them all
        self._pace.arrived(every - since_due, every)
        return since_due == 0

    def _on_shared_frame(self, frame: Frame) -> None:
        if self._is_due(frame.stamp_ns):
            self._on_frame(frame)

    def _on_frame(self, frame: Frame) -> None:
        if self.parameters.schedule == 'every_n':
            self._lane.offer(frame)
            return
        self._recent[frame.stamp_ns] = frame
        if len(self._recent) > RECENT_FRAMES:
            self._recent.popitem(last=False)
        # A request may come before its image.
        is_wanted = frame.stamp_ns == self._wanted_ns
        is_alone = time.monotonic() - self._asked_s > UNASKED_S
        is_nth = (self._seen - 1) % self.parameters.detect_every_n == 0
        if is_wanted or (is_alone and is_nth):
            self._lane.offer(frame)

    def _on_wanted(self, stamp_ns: int) -> None:
        """The tracker asks for a detection on the image of this stamp."""
        self._asked_s = time.monotonic()
        self._wanted_ns = stamp_ns
        frame = self._recent.pop(stamp_ns, None)
        if frame is not None and self.parameters.schedule == 'adaptive':
            self._lane.offer(frame)

    def _detect(self, frame: Frame) -> None:
        detector = self._detector
        assert detector is not None  # the worker ends before the model is freed
        started_s = time.perf_counter()
        detections = self._find(detector, frame)
        self._pace.worked(time.perf_counter() - started_s)
        self._inferences[detector.backend_name] += 1
        for stage, latency_ms in detector.timings.items():
            self.latencies.add(stage, latency_ms)
        result = Stamped(detections, frame.stamp_ns, frame.frame_id, detector.names)
        if self.links:
            self.links.detections.send(result)
        if self._publisher.get_subscription_count():
            started_s = time.perf_counter()
            self._publisher.publish(to_message(result))
            self.latencies.add('publish', (time.perf_counter() - started_s) * 1e3)
        self.latencies.add('end_to_end', (self.now_ns() - frame.stamp_ns) / 1e6)
        self.fps.tick()

    def _find(self, detector: Detector, frame: Frame) -> Detections:
        """Run the detector; now and then, when it finds nothing, see how near to it things are."""
        now_s = time.monotonic()
        threshold = self.parameters.score_threshold
        is_probe = (
            now_s - self._found_s > PROBE_AFTER_S
            and now_s - self._probed_s > 1.0
            and threshold > PROBE_SCORE
        )
        if is_probe:
            self._probed_s = now_s
            with self._settings:
                detector.score_threshold = PROBE_SCORE
                try:
                    candidates = detector(frame)
                finally:
                    self._apply(detector, self.parameters)
            self._scores_seen.append(float(candidates.score.max(initial=0.0)))
            detections = candidates[candidates.score >= threshold]
        else:
            detections = detector(frame)
        if len(detections):
            self._found_s = now_s
            self._scores_seen.clear()
        return detections

    def _on_request(self, request: DetectRequest) -> None:
        detector = self._detector
        if detector is None or self.state_label != 'active':
            _refuse(request, BusyError(f'the detector is {self.state_label}'))
        elif request.backend not in ('', 'auto', detector.backend_name):
            text = f'backend: requests share the running detector ({detector.backend_name})'
            _refuse(request, OtherBackendError(text))
        elif self._pace.is_full:
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
                    detector.classes = request.classes
                    if request.score_threshold is not None:
                        detector.score_threshold = request.score_threshold
                    detections = detector(request.image)
                finally:
                    self._apply(detector, self.parameters)
        except Exception as error:
            request.answer.set_exception(error)
            return
        self._pace.worked(time.perf_counter() - started_s)
        self._inferences[detector.backend_name] += 1
        request.answer.set_result(
            DetectAnswer(detections, detector.names, detector.backend_name, dict(detector.timings))
        )


def _refuse(request: DetectRequest, error: Exception) -> None:
    """Answer with an error, unless whoever asked has given up."""
    if request.answer.set_running_or_notify_cancel():
        request.answer.set_exception(error)


def main() -> None:
    """Run the node alone."""
    process.main(DetectorNode)


if __name__ == '__main__':
    main()
