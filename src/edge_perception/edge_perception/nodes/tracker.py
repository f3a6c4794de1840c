"""tracker: gives every image its boxes with stable ids, whenever detections arrive."""

from __future__ import annotations

import ast
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.serialization import serialize_message
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray

from edge_perception.ros import process
from edge_perception.ros.image_input import ImageInput, ImageInputParameters, StampWatch
from edge_perception.ros.lifecycle import ManagedNode, NodeParameters, Report
from edge_perception.ros.links import Links, Stamped
from edge_perception.ros.messages import (
    ClassNames,
    make_header,
    message_to_detections,
    to_message,
)
from edge_perception.ros.parameters import comma_separated, parameter
from edge_perception.ros.qos import RESULTS_QOS
from edge_perception.ros.worker import Worker
from edge_perception.tracking import (
    AdaptiveParameters,
    AdaptiveSchedule,
    Tracker,
    TrackingError,
    create_tracker,
)
from edge_perception.types import Detections, EdgePerceptionError, Frame, Tracks, TrackSource


@dataclass(frozen=True)
class TrackerParameters(ImageInputParameters, NodeParameters):
    """Parameters of the tracker node."""

    # The tracker answers every image: a short queue bridges a hiccup of the process, and it is
    # soon empty again because a step takes far less than the time between two images.
    image_depth: int = parameter(
        5, 'images that may wait in the middleware; older ones are lost', minimum=1, maximum=100
    )
    tracker: str = parameter(
        'hybrid',
        'the algorithm',
        choices=('hybrid', 'iou', 'sort', 'bytetrack', 'ocsort'),
    )
    tracker_settings: str = parameter(
        '',
        "changes to the defaults of the algorithm, such as 'coast_s=0.5, lost_s=3.0'",
        live=True,
    )
    use_images: bool = parameter(
        True, 'let boxes follow the picture between detections; false predicts from motion alone'
    )
    schedule: str = parameter(
        'every_n',
        'adaptive asks the detector for an image when boxes grow doubtful or something new moves; '
        'the detector needs the same setting',
        choices=('every_n', 'adaptive'),
        live=True,
    )
    max_uncertainty: float = parameter(
        0.12,
        'standard deviation of a box in object heights at which an adaptive schedule asks; '
        'more is fewer detections',
        minimum=0.01,
        maximum=1.0,
        live=True,
    )
    max_detect_load: float = parameter(
        0.7,
        'part of the time that detections may take, with an adaptive schedule',
        minimum=0.01,
        maximum=1.0,
        live=True,
    )
    min_detect_interval_s: float = parameter(
        0.1,
        'between two requests at least, with an adaptive schedule',
        minimum=0.0,
        maximum=60.0,
        live=True,
    )
    max_detect_interval_s: float = parameter(
        1.0,
        'between two requests at most, with an adaptive schedule: a newcomer who stands still '
        'shows in no other way',
        minimum=0.01,
        maximum=60.0,
        live=True,
    )


# Requests whose answer may still come.
WAITING_REQUESTS = 8


def _adaptive(p: TrackerParameters) -> AdaptiveParameters:
    return AdaptiveParameters(
        max_uncertainty=p.max_uncertainty,
        max_load=p.max_detect_load,
        min_interval_s=p.min_detect_interval_s,
        max_interval_s=p.max_detect_interval_s,
    )


def _make_tracker(p: TrackerParameters) -> Tracker[Any]:
    return create_tracker(p.tracker, **_settings(p.tracker_settings))


def _warm_up(tracker: Tracker[Any]) -> None:
    """Take a tracker through all that it does, on noise.

    OpenCV and NumPy make tables when they are first asked for something, which takes 70 ms: more
    than an image may wait when the first person comes.
    """
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    boxes = np.array([[20, 20, 60, 100], [100, 20, 140, 100]], np.float32)
    detections = Detections(boxes, np.full(2, 0.9, np.float32), np.zeros(2, np.int32))
    for stamp_ns in range(0, 500_000_000, 100_000_000):
        tracker.step(stamp_ns, image)
        tracker.correct(stamp_ns, detections)


def _settings(text: str) -> dict[str, Any]:
    """The pairs of `tracker_settings`.

    Raises:
        TrackingError: it is no list of NAME=VALUE.
    """
    pairs = {}
    for part in comma_separated(text):
        name, separator, value = part.partition('=')
        try:
            pairs[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError) as error:
            raise TrackingError(
                f'tracker_settings: {part!r} is not NAME=NUMBER or NAME=True'
            ) from error
        if not separator:
            raise TrackingError(f'tracker_settings: {part!r} has no =')
    return pairs


class TrackerNode(ManagedNode):
    """Topics: image_raw, detections -> tracks, for every image; detect_request."""

    def __init__(self, *, links: Links | None = None, **kwargs: Any) -> None:
        self._tracker = create_tracker()
        self._schedule = AdaptiveSchedule()
        super().__init__('tracker', TrackerParameters, links=links, **kwargs)

    def configure(self) -> None:
        """Create the tracker."""
        self._tracker = _make_tracker(self.parameters)
        _warm_up(_make_tracker(self.parameters))
        self._schedule.parameters = _adaptive(self.parameters)
        self._publisher = self.advertise(Detection2DArray, 'tracks', RESULTS_QOS)
        self._request_publisher = self.advertise(Header, 'detect_request', RESULTS_QOS)

    def activate(self) -> None:
        """Start to track."""
        self._tracker.reset()
        self._schedule.reset()
        self._asked_s: OrderedDict[int, float] = OrderedDict()
        self._stamps = StampWatch(self)
        self._class_names = ClassNames()
        self._names: Mapping[int, str] = self._class_names.names
        self._newest = Tracks.empty()
        self._worker = Worker(name='track', on_error=self.log_error_once_a_second)
        # Frames first: a correction may wait for the few milliseconds of a step, a frame that
        # waits for a correction is late.
        self._frames = self._worker.lane(
            self._step, depth=4, waited=lambda ms: self.latencies.add('queue', ms)
        )
        self._corrections = self._worker.lane(self._correct, depth=8)
        self.until_deactivate(self._worker.stop)
        self._worker.start()
        self._input: ImageInput | None = None
        if self.links:
            self.until_deactivate(self.links.frames.subscribe(self._frames.offer))
            self.until_deactivate(self.links.detections.subscribe(self._corrections.offer))
        else:
            self._input = ImageInput(
                self, self.parameters, self._frames.offer, self.log_error_once_a_second
            )
            self.until_deactivate(self._input.close)
            self.subscribe(Detection2DArray, 'detections', self._on_detections, RESULTS_QOS)

    def parameters_changed(self, updated: TrackerParameters) -> None:
        """Tracker and schedule take over their settings."""
        tracker = _make_tracker(updated)
        if type(tracker) is type(self._tracker):
            self._tracker.parameters = tracker.parameters
        self._schedule.parameters = _adaptive(updated)

    def diagnose(self, report: Report) -> None:
        """Tracker in use, counts."""
        report.values['tracker'] = self.parameters.tracker
        report.values['schedule'] = self.parameters.schedule
        if self.state_label != 'active':
            return
        counts, corrections = self._frames.counts, self._corrections.counts
        failed = counts.failed + corrections.failed + (self._input.failed if self._input else 0)
        report.values['received'] = str(counts.received)
        report.values['tracked'] = str(counts.processed)
        report.values['dropped'] = str(counts.dropped)
        report.values['failed'] = str(failed)
        report.values['detections_received'] = str(corrections.received)
        tracks = self._newest
        for source in TrackSource:
            count = np.count_nonzero(tracks.source == source)
            report.values[f'tracks_{source.name.lower()}'] = str(count)
        for track_id, age_s, since_s, source in zip(
            tracks.track_id.tolist(),
            tracks.age_s.tolist(),
            tracks.time_since_detection_s.tolist(),
            tracks.source.tolist(),
            strict=True,
        ):
            report.values[f'track.{track_id}'] = (
                f'{TrackSource(source).name.lower()}, age {age_s:.1f} s, '
                f'detected {since_s:.2f} s ago'
            )
        if self.parameters.schedule == 'adaptive':
            report.values['chosen_n'] = str(self._schedule.chosen_n)
            report.values['chosen_because'] = self._schedule.reason
        self._stamps.diagnose(report)
        if self._input:
            self._input.diagnose(report)

    def _on_detections(self, message: Detection2DArray) -> None:
        try:
            self._corrections.offer(message_to_detections(message, self._class_names))
        except EdgePerceptionError as error:
            self._corrections.counts.failed += 1
            self.log_error_once_a_second(error)

    def _step(self, frame: Frame) -> None:
        started_s = time.perf_counter()
        if self._stamps.jumped_back(frame.stamp_ns):
            self._tracker.reset()
            self._schedule.reset()
        image = frame.image if self.parameters.use_images else None
        tracks = self._tracker.step(frame.stamp_ns, image)
        tracked_s = time.perf_counter()
        result = Stamped(tracks, frame.stamp_ns, frame.frame_id, self._names)
        # Made into bytes first: what remains is the hand-over to the middleware, so that the age
        # is that of the message when it leaves. After it this thread may wait for others.
        data = serialize_message(to_message(result))
        age_ms = (self.now_ns() - frame.stamp_ns) / 1e6
        self._publisher.publish(data)
        published_s = time.perf_counter()
        self.latencies.add('track', (tracked_s - started_s) * 1e3)
        self.latencies.add('publish', (published_s - tracked_s) * 1e3)
        self.latencies.add('end_to_end', age_ms)
        self.fps.tick()
        self._newest = tracks
        if self.links:
            self.links.tracks.send(result)
        if self.parameters.schedule == 'adaptive':
            self._ask(frame)

    def _ask(self, frame: Frame) -> None:
        """Ask for a detection on this image, if it is worth one."""
        if not self._schedule.wants(frame.stamp_ns, self._tracker.quality):
            return
        self._asked_s[frame.stamp_ns] = time.monotonic()
        if len(self._asked_s) > WAITING_REQUESTS:
            self._asked_s.popitem(last=False)
        if self.links:
            self.links.wanted_stamps_ns.send(frame.stamp_ns)
        if self._request_publisher.get_subscription_count():
            self._request_publisher.publish(make_header(frame.stamp_ns, frame.frame_id))

    def _correct(self, result: Stamped[Detections]) -> None:
        started_s = time.perf_counter()
        asked_s = self._asked_s.pop(result.stamp_ns, None)
        if asked_s is not None:
            self._schedule.detection_took(time.monotonic() - asked_s)
        self._names = result.names
        self._tracker.correct(result.stamp_ns, result.value)
        self.latencies.add('correct', (time.perf_counter() - started_s) * 1e3)


def main() -> None:
    """Run the node alone."""
    process.main(TrackerNode)


if __name__ == '__main__':
    main()
