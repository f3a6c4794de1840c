"""detector: runs the network on every N-th image and publishes what it finds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from vision_msgs.msg import Detection2DArray, LabelInfo

from edge_perception.detection.backends import available_backends
from edge_perception.detection.decode import LAYOUT_NAMES
from edge_perception.detection.detector import Detector
from edge_perception.ros import process
from edge_perception.ros.image_input import ImageInput, ImageInputParameters
from edge_perception.ros.lifecycle import ManagedNode, NodeParameters, Report
from edge_perception.ros.links import Links, Stamped
from edge_perception.ros.messages import label_info, make_header, to_message
from edge_perception.ros.parameters import parameter
from edge_perception.ros.paths import DEFAULT_MODEL, find_model
from edge_perception.ros.qos import LATCHED_QOS, RESULTS_QOS
from edge_perception.ros.worker import Worker, call_nice
from edge_perception.types import Frame


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
    detect_every_n: int = parameter(
        5, 'run the detector on every N-th image', minimum=1, maximum=1000, live=True
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


def class_list(text: str) -> list[str]:
    """Names from a comma-separated parameter."""
    return [name.strip() for name in text.split(',') if name.strip()]


class DetectorNode(ManagedNode):
    """Topics: image_raw -> detections, label_info (latched)."""

    def __init__(self, *, links: Links | None = None, **kwargs: Any) -> None:
        self._detector: Detector | None = None
        super().__init__('detector', DetectorParameters, links=links, **kwargs)

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
        self._last_stamp_ns = 0
        self._worker = Worker(
            name='detect', on_error=self.log_error_once_a_second, nice=self.parameters.nice
        )
        self._lane = self._worker.lane(self._detect)
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
        self._input: ImageInput | None = None
        if self.links:
            self.until_deactivate(self.links.frames.subscribe(self._on_shared_frame))
        else:
            self._input = ImageInput(
                self,
                self.parameters,
                self._lane.offer,
                self.log_error_once_a_second,
                accept=self._is_due,
            )
            self.until_deactivate(self._input.close)

    def parameters_changed(self, updated: DetectorParameters) -> None:
        """Thresholds and classes go to the detector; detect_every_n is read at each image."""
        if self._detector is not None:
            self._detector.classes = class_list(updated.classes)
            self._detector.score_threshold = updated.score_threshold
            self._detector.iou_threshold = updated.iou_threshold

    def diagnose(self, report: Report) -> None:
        """Backend in use, counts."""
        p = self.parameters
        report.values['model'] = p.model_path
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
            if failed:
                report.warn(f'{failed} images failed')

    def _is_due(self, stamp_ns: int) -> bool:
        if stamp_ns < self._last_stamp_ns:
            self.get_logger().warning('stamps jumped back: counts and statistics start anew')
            self._seen = 0
            self.latencies.reset()
        self._last_stamp_ns = stamp_ns
        self._seen += 1
        return (self._seen - 1) % self.parameters.detect_every_n == 0

    def _on_shared_frame(self, frame: Frame) -> None:
        if self._is_due(frame.stamp_ns):
            self._lane.offer(frame)

    def _detect(self, frame: Frame) -> None:
        detector = self._detector
        assert detector is not None  # the worker ends before the model is freed
        detections = detector(frame)
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


def main() -> None:
    """Run the node alone."""
    process.main(DetectorNode)


if __name__ == '__main__':
    main()
