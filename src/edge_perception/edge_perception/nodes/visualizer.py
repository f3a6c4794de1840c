"""visualizer: draws tracks into the image, when somebody looks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from rclpy.clock import Clock, ClockType
from vision_msgs.msg import Detection2DArray

from edge_perception.media.drawing import Trails, draw_tracks
from edge_perception.ros import process
from edge_perception.ros.image_input import ImageInput, ImageInputParameters
from edge_perception.ros.image_output import ImageOutput
from edge_perception.ros.lifecycle import ManagedNode, NodeParameters, Report
from edge_perception.ros.links import Links, Stamped
from edge_perception.ros.messages import ClassNames, message_to_tracks
from edge_perception.ros.parameters import parameter
from edge_perception.ros.qos import RESULTS_QOS
from edge_perception.ros.worker import Worker
from edge_perception.types import EdgePerceptionError, Frame, Tracks

# A frame and its tracks arrive apart, in either order; so many of each wait for their match.
WAITING = 8


@dataclass(frozen=True)
class VisualizerParameters(ImageInputParameters, NodeParameters):
    """Parameters of the visualizer node."""

    image_depth: int = parameter(
        2, 'images that may wait in the middleware; older ones are lost', minimum=1, maximum=100
    )
    jpeg_quality: int = parameter(
        80, 'of image_annotated/compressed', minimum=1, maximum=100, live=True
    )
    nice: int = parameter(
        5, 'niceness of the drawing, so that the tracker answers in time', minimum=0, maximum=19
    )


class VisualizerNode(ManagedNode):
    """Topics: image_raw, tracks -> image_annotated, image_annotated/compressed."""

    def __init__(self, *, links: Links | None = None, **kwargs: Any) -> None:
        super().__init__('visualizer', VisualizerParameters, links=links, **kwargs)

    def configure(self) -> None:
        """Create the publishers."""
        self._output = ImageOutput(self, 'image_annotated')

    def activate(self) -> None:
        """Look for subscribers; images are taken in only while there are any."""
        self._class_names = ClassNames()
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self._tracks: OrderedDict[int, Stamped[Tracks]] = OrderedDict()
        self._trails = Trails()
        self._matching = threading.Lock()
        self._worker = Worker(
            name='draw', on_error=self.log_error_once_a_second, nice=self.parameters.nice
        )
        self._lane = self._worker.lane(self._draw, depth=2)
        self.until_deactivate(self._worker.stop)
        self._worker.start()
        self._input: ImageInput | None = None
        self._tracks_subscription = None
        if self.links:
            self.until_deactivate(self.links.frames.subscribe(self._on_frame))
            self.until_deactivate(self.links.tracks.subscribe(self._on_tracks))
        else:
            # Steady time: a simulated clock that stands still must not hide who looks.
            timer = self.create_timer(
                0.2, self._follow_demand, clock=Clock(clock_type=ClockType.STEADY_TIME)
            )
            self.until_deactivate(self._unsubscribe)
            self.until_deactivate(lambda: self.destroy_timer(timer))

    def diagnose(self, report: Report) -> None:
        """Counts."""
        if self.state_label != 'active':
            return
        counts = self._lane.counts
        report.values['watched'] = str(self._output.is_watched).lower()
        report.values['received'] = str(counts.received)
        report.values['drawn'] = str(counts.processed)
        report.values['dropped'] = str(counts.dropped)
        report.values['failed'] = str(counts.failed)
        if self._input is not None:
            self._input.diagnose(report)

    def _follow_demand(self) -> None:
        if self._output.is_watched and self._input is None:
            self._input = ImageInput(
                self, self.parameters, self._on_frame, self.log_error_once_a_second
            )
            self._tracks_subscription = self.create_subscription(
                Detection2DArray, 'tracks', self._on_tracks_message, RESULTS_QOS
            )
        elif not self._output.is_watched:
            self._unsubscribe()

    def _unsubscribe(self) -> None:
        if self._input is not None:
            self._input.close()
            self.destroy_subscription(self._tracks_subscription)
            self._input = None
            self._forget()

    def _on_tracks_message(self, message: Detection2DArray) -> None:
        try:
            self._on_tracks(message_to_tracks(message, self._class_names))
        except EdgePerceptionError as error:
            self._lane.counts.failed += 1
            self.log_error_once_a_second(error)

    def _on_frame(self, frame: Frame) -> None:
        self._match(frame.stamp_ns, self._frames, frame)

    def _on_tracks(self, result: Stamped[Tracks]) -> None:
        self._match(result.stamp_ns, self._tracks, result)

    def _match(self, stamp_ns: int, waiting: OrderedDict[int, Any], item: Any) -> None:
        with self._matching:  # frames and tracks come on different threads
            if not self._output.is_watched:
                self._forget()
                return
            waiting[stamp_ns] = item
            if stamp_ns in self._frames and stamp_ns in self._tracks:
                self._lane.offer((self._frames.pop(stamp_ns), self._tracks.pop(stamp_ns)))
            elif len(waiting) > WAITING:
                waiting.popitem(last=False)

    def _forget(self) -> None:
        self._frames.clear()
        self._tracks.clear()

    def _draw(self, item: tuple[Frame, Stamped[Tracks]]) -> None:
        frame, result = item
        self._trails.add(frame.stamp_ns, result.value)
        image = draw_tracks(frame.image.copy(), result.value, result.names, self._trails)
        annotated = Frame(image, frame.stamp_ns, frame.frame_id)
        self._output.publish(annotated, self.parameters.jpeg_quality)
        self.latencies.add('end_to_end', (self.now_ns() - frame.stamp_ns) / 1e6)
        self.fps.tick()


def main() -> None:
    """Run the node alone."""
    process.main(VisualizerNode)


if __name__ == '__main__':
    main()
