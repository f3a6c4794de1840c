"""tracker: gives every image its boxes with stable ids, whenever detections arrive."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from vision_msgs.msg import Detection2DArray

from edge_perception.ros import process
from edge_perception.ros.image_input import ImageInput, ImageInputParameters, StampWatch
from edge_perception.ros.lifecycle import ManagedNode, NodeParameters, Report
from edge_perception.ros.links import Links, Stamped
from edge_perception.ros.messages import ClassNames, message_to_detections, to_message
from edge_perception.ros.parameters import parameter
from edge_perception.ros.qos import RESULTS_QOS
from edge_perception.ros.worker import Worker
from edge_perception.tracking import create_tracker
from edge_perception.types import Detections, EdgePerceptionError, Frame, TrackSource


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
    use_images: bool = parameter(
        True, 'let boxes follow the picture between detections; false predicts from motion alone'
    )


class TrackerNode(ManagedNode):
    """Topics: image_raw, detections -> tracks, for every image."""

    def __init__(self, *, links: Links | None = None, **kwargs: Any) -> None:
        super().__init__('tracker', TrackerParameters, links=links, **kwargs)

    def configure(self) -> None:
        """Create the tracker."""
        self._tracker = create_tracker(self.parameters.tracker)
        self._publisher = self.advertise(Detection2DArray, 'tracks', RESULTS_QOS)

    def activate(self) -> None:
        """Start to track."""
        self._tracker.reset()
        self._stamps = StampWatch(self)
        self._class_names = ClassNames()
        self._names: Mapping[int, str] = self._class_names.names
        self._track_counts = dict.fromkeys(TrackSource, 0)
        self._worker = Worker(name='track', on_error=self.log_error_once_a_second)
        # Frames first: a correction may wait for the few milliseconds of a step, a frame that
        # waits for a correction is late.
        self._frames = self._worker.lane(
            self._step, depth=4, waited=lambda ms: self.latencies.add('queue', ms)
        )
        self._corrections = self._worker.lane(self._correct, depth=8)
        self._worker.start()
        self.until_deactivate(self._worker.stop)
        self._input: ImageInput | None = None
        if self.links:
            self.until_deactivate(self.links.frames.subscribe(self._frames.offer))
            self.until_deactivate(self.links.detections.subscribe(self._corrections.offer))
        else:
            self._input = ImageInput(
                self, self.parameters, self._frames.offer, self.log_error_once_a_second
            )
            self.until_deactivate(self._input.close)
            subscription = self.create_subscription(
                Detection2DArray, 'detections', self._on_detections, RESULTS_QOS
            )
            self.until_deactivate(lambda: self.destroy_subscription(subscription))

    def diagnose(self, report: Report) -> None:
        """Tracker in use, counts."""
        report.values['tracker'] = self.parameters.tracker
        if self.state_label != 'active':
            return
        counts, corrections = self._frames.counts, self._corrections.counts
        failed = counts.failed + corrections.failed + (self._input.failed if self._input else 0)
        report.values['received'] = str(counts.received)
        report.values['tracked'] = str(counts.processed)
        report.values['dropped'] = str(counts.dropped)
        report.values['failed'] = str(failed)
        report.values['detections_received'] = str(corrections.received)
        for source, count in self._track_counts.items():
            report.values[f'tracks_{source.name.lower()}'] = str(count)
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
        image = frame.image if self.parameters.use_images else None
        tracks = self._tracker.step(frame.stamp_ns, image)
        tracked_s = time.perf_counter()
        result = Stamped(tracks, frame.stamp_ns, frame.frame_id, self._names)
        self._publisher.publish(to_message(result))
        published_s = time.perf_counter()
        self.latencies.add('track', (tracked_s - started_s) * 1e3)
        self.latencies.add('publish', (published_s - tracked_s) * 1e3)
        self.latencies.add('end_to_end', (self.now_ns() - frame.stamp_ns) / 1e6)
        self.fps.tick()
        for source in TrackSource:
            self._track_counts[source] = int(np.count_nonzero(tracks.source == source))
        if self.links:
            self.links.tracks.send(result)

    def _correct(self, result: Stamped[Detections]) -> None:
        started_s = time.perf_counter()
        self._names = result.names
        self._tracker.correct(result.stamp_ns, result.value)
        self.latencies.add('correct', (time.perf_counter() - started_s) * 1e3)


def main() -> None:
    """Run the node alone."""
    process.main(TrackerNode)


if __name__ == '__main__':
    main()
