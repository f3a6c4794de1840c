"""source: publishes images of a camera, a video, a URL, a folder of images or a bag."""

from __future__ import annotations

import dataclasses
import threading
import time
from dataclasses import dataclass
from typing import Any

from sensor_msgs.msg import CameraInfo

from edge_perception import media
from edge_perception.ros import process
from edge_perception.ros.image_output import ImageOutput
from edge_perception.ros.lifecycle import ManagedNode, NodeParameters, Report
from edge_perception.ros.links import Links
from edge_perception.ros.messages import make_header
from edge_perception.ros.parameters import parameter
from edge_perception.ros.qos import image_qos
from edge_perception.ros.worker import STOP_S, call_nice, join_started
from edge_perception.types import EdgePerceptionError, Frame

# A recorded source that falls behind by more than this goes on from now: like a camera, its
# rate falls then, and the age of its images does not grow.
LATEST_LAG_NS = 500_000_000
REOPEN_AFTER_S = 1.0
# Images on their way again over a network that lost them; at 30 Hz, those of a second.
COMPRESSED_DEPTH = 30


@dataclass(frozen=True)
class SourceParameters(NodeParameters):
    """Parameters of the source node."""

    source: str = parameter(
        '0',
        'camera index or device, video file, image folder, rosbag2 folder, RTSP/HTTP URL or '
        'GStreamer pipeline',
    )
    rate_hz: float = parameter(
        0.0, 'images a second; 0 takes the rate of the source', minimum=0.0, maximum=1000.0
    )
    loop: bool = parameter(False, 'start a recorded source again at its end')
    bag_image_topic: str = parameter('', 'image topic of a bag; needed when it has several')
    stamps: str = parameter(
        'now',
        'stamp the images of a recorded source with the time they are published at, or leave '
        'them the time of the recording',
        choices=('now', 'recorded'),
    )
    width: int = parameter(
        0, 'capture width to ask of a camera, in pixels; 0 leaves it', minimum=0, maximum=16384
    )
    height: int = parameter(
        0, 'capture height to ask of a camera, in pixels; 0 leaves it', minimum=0, maximum=16384
    )
    frame_id: str = parameter(
        '', "coordinate frame of the images; empty takes that of a bag, and 'camera' elsewhere"
    )
    wait_for_subscriber: bool = parameter(
        False, 'begin with a recorded source when somebody subscribes to its images'
    )
    camera_info_path: str = parameter(
        '', 'calibration file in the format of camera_calibration; empty publishes no calibration'
    )
    jpeg_quality: int = parameter(90, 'of image_raw/compressed', minimum=1, maximum=100, live=True)
    timeout_s: float = parameter(
        5.0, 'a camera that is silent for longer is opened anew', minimum=0.1, maximum=3600.0
    )


class SourceNode(ManagedNode):
    """Topics: -> image_raw, image_raw/compressed, camera_info."""

    def __init__(self, *, links: Links | None = None, **kwargs: Any) -> None:
        self._source: media.Source | None = None
        super().__init__('source', SourceParameters, links=links, **kwargs)

    def configure(self) -> None:
        """Open the source."""
        p = self.parameters
        self._camera_info = None
        if p.camera_info_path:
            self._camera_info = media.load_camera_info(p.camera_info_path, p.frame_id or 'camera')
        # Apart, so that Ctrl-C need not wait for a server that does not answer.
        self._source = call_nice(0, self._open)
        self.until_cleanup(self._close)
        self.get_logger().info(self._source.description)
        self._output = ImageOutput(self, 'image_raw', compressed_depth=COMPRESSED_DEPTH)
        self._info_publisher = self.advertise(
            CameraInfo, 'camera_info', image_qos(5, reliable=True)
        )

    def _open(self) -> media.Source:
        p = self.parameters
        return media.open_source(
            p.source,
            loop=p.loop,
            image_topic=p.bag_image_topic or None,
            width=p.width or None,
            height=p.height or None,
            rate_hz=p.rate_hz or None,
            frame_id=p.frame_id or None,
            timeout_s=p.timeout_s,
        )

    def activate(self) -> None:
        """Start to publish; a recorded source starts at its beginning."""
        if self._source is None:
            self._source = self._open()
        self._published = 0
        self._problem = ''
        self._finished = False
        ending = threading.Event()
        thread = threading.Thread(target=self._run, args=(ending,), name='source', daemon=True)

        def end() -> None:
            ending.set()
            self._close()  # a camera blocks until its next image: closing it ends the wait
            join_started(thread, STOP_S)

        self.until_deactivate(end)
        thread.start()

    def diagnose(self, report: Report) -> None:
        """What is read, how far it is."""
        report.values['source'] = report.hardware_id = media.hide_password(self.parameters.source)
        if self.state_label != 'active':
            return
        source = self._source
        report.values['published'] = str(self._published)
        report.values['finished'] = str(self._finished).lower()
        if source is not None:
            report.values['skipped'] = str(source.skipped)
            report.values['dropped'] = str(source.dropped)
        if source is not None and not source.is_live:
            report.values['frame_count'] = str(source.frame_count)
            report.values['rate_hz'] = str(source.rate_hz)
        if self._problem:
            report.error(self._problem)
        elif self._finished:
            report.note(f'{self.parameters.source} is at its end')

    def _close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def _run(self, ending: threading.Event) -> None:
        while not ending.is_set():
            source = self._source
            try:
                if source is None:
                    source = self._open()
                    if ending.is_set():  # nobody waits for it any more
                        source.close()
                        break
                    self._source = source
                self._publish_all(source, ending)
                break
            except EdgePerceptionError as error:
                if ending.is_set():
                    break
                self._problem = str(error)
                self.get_logger().error(str(error), throttle_duration_sec=10.0)
                if source is not None and not source.is_live:
                    break  # a broken file does not mend itself; a camera is plugged in again
                self._close()
                ending.wait(REOPEN_AFTER_S)
        if not ending.is_set():
            self._finished = True
            self.get_logger().info(f'end of {media.hide_password(self.parameters.source)}')

    def _publish_all(self, source: media.Source, ending: threading.Event) -> None:
        start_ns: int | None = None
        if self.parameters.wait_for_subscriber and not source.is_live:
            while not self._output.is_watched:
                if ending.wait(0.05):
                    return
        for frame in source:
            if not source.is_live:
                now_ns = time.time_ns()
                if start_ns is None or now_ns - (start_ns + frame.stamp_ns) > LATEST_LAG_NS:
                    start_ns = now_ns - frame.stamp_ns
                due_ns = start_ns + frame.stamp_ns
                if ending.wait(max(due_ns - now_ns, 0) / 1e9):
                    return
                if self.parameters.stamps == 'now':
                    frame = dataclasses.replace(frame, stamp_ns=due_ns)
            elif ending.is_set():
                return
            self._problem = ''
            if not frame.frame_id:
                frame = dataclasses.replace(frame, frame_id='camera')
            self._publish(frame, source.camera_info)

    def _publish(self, frame: Frame, recorded_info: media.CameraInfo | None) -> None:
        if self.links:
            self.links.frames.send(frame)
        self._output.publish(frame, self.parameters.jpeg_quality)
        if self._info_publisher.get_subscription_count():
            self._info_publisher.publish(
                _camera_info_message(frame, self._camera_info or recorded_info)
            )
        self._published += 1
        self.latencies.add('publish', (time.time_ns() - frame.stamp_ns) / 1e6)
        self.fps.tick()


def _camera_info_message(frame: Frame, info: media.CameraInfo | None) -> CameraInfo:
    """The calibration of a frame; with zero matrices, as ROS says it, when it is unknown."""
    height, width = frame.image.shape[:2]
    header = make_header(frame.stamp_ns, frame.frame_id)
    if info is None:
        return CameraInfo(header=header, width=width, height=height)
    return CameraInfo(
        header=header,
        width=info.width,
        height=info.height,
        distortion_model=info.distortion_model,
        d=info.d,
        k=info.k,
        r=info.r,
        p=info.p,
    )


def main() -> None:
    """Run the node alone."""
    process.main(SourceNode)


if __name__ == '__main__':
    main()
