"""Frames from an image topic, raw or compressed, and why there are none."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from dataclasses import dataclass

from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.qos import qos_policy_name_from_kind
from sensor_msgs.msg import CompressedImage, Image

from edge_perception.ros.cameras import in_camera
from edge_perception.ros.images import compressed_to_frame, image_to_frame
from edge_perception.ros.lifecycle import RECENT_S, Camera, ManagedNode, Report
from edge_perception.ros.messages import MessageError, stamp_ns
from edge_perception.ros.parameters import parameter
from edge_perception.ros.qos import image_qos
from edge_perception.ros.transport import other_users_of_shared_memory
from edge_perception.types import EdgePerceptionError, Frame

IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
FUTURE_MS = 500.0
OLD_MS = 5000.0
SIMILAR_TOPICS = 3
QOS_REMEDIES = {
    'RELIABILITY': 'the publisher is best effort: set image_reliable to false',
    'DURABILITY': 'the publisher keeps nothing for late subscribers',
}


@dataclass(frozen=True)
class ImageInputParameters:
    """What a node that subscribes to images has."""

    image_transport: str = parameter(
        'raw', 'subscribe to image_raw or to image_raw/compressed', choices=('raw', 'compressed')
    )
    image_depth: int = parameter(
        1, 'images that may wait in the middleware; older ones are lost', minimum=1, maximum=100
    )
    image_reliable: bool = parameter(
        False, 'reliable subscription, for a lossy network; needs a reliable publisher'
    )
    stale_after_s: float = parameter(
        2.0,
        'warn when no image comes for longer, in seconds',
        minimum=0.1,
        maximum=3600.0,
        live=True,
    )


class ImageInput:
    """A subscription that hands on frames, and knows why none come.

    Args:
        node: who subscribes; the topic `image_raw` is resolved with its remappings.
        parameters: transport and QoS.
        on_frame: called with each frame on the executor's thread.
        on_error: called when a message is malformed or carries no stamp.
        accept: called with the stamp of each message; False skips its conversion.
        camera: whose images, where the node serves several.
    """

    def __init__(
        self,
        node: ManagedNode,
        parameters: ImageInputParameters,
        on_frame: Callable[[Frame], None],
        on_error: Callable[[Exception], None],
        accept: Callable[[int], bool] | None = None,
        camera: Camera | None = None,
    ) -> None:
        self.received = 0
        self.failed = 0
        self._node = node
        self._on_frame = on_frame
        self._on_error = on_error
        self._accept = accept
        self._add_latency = camera.add_latency if camera else node.latencies.add
        topic = node.resolve_topic_name(in_camera(camera.name if camera else '', 'image_raw'))
        self._compressed = parameters.image_transport == 'compressed'
        self.topic = f'{topic}/compressed' if self._compressed else topic
        self._to_frame = compressed_to_frame if self._compressed else image_to_frame
        self._last_received_s = time.monotonic()
        self._age_ms = 0.0
        self._incompatible_policy = ''
        arguments = (
            CompressedImage if self._compressed else Image,
            self.topic,
            self._on_message,
            image_qos(parameters.image_depth, reliable=parameters.image_reliable),
        )
        try:
            self._subscription = node.create_subscription(
                *arguments,
                event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible),
            )
        except UnsupportedEventTypeError:  # not every middleware tells
            self._subscription = node.create_subscription(*arguments)

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)

    def diagnose(self, report: Report) -> None:
        """Say what is wrong with the images, if anything is."""
        silent_s = time.monotonic() - self._last_received_s
        if silent_s > self._node.parameters.stale_after_s:
            if not self._node.count_publishers(self.topic):
                report.warn(f'no publisher on {self.topic}{self._alternatives()}')
            elif self._incompatible_policy:
                remedy = QOS_REMEDIES.get(self._incompatible_policy, 'see ros2 topic info -v')
                report.warn(
                    f'incompatible QoS on {self.topic}: {self._incompatible_policy}, {remedy}'
                )
            elif self.received:
                report.warn(
                    f'no image on {self.topic} for {silent_s:.0f} s, though it has a publisher'
                    f'{_other_users()}'
                )
            else:
                report.warn(
                    f'no image on {self.topic} yet, though it has a publisher{_other_users()}'
                )
        elif self._age_ms < -FUTURE_MS:
            report.warn(
                f'stamps on {self.topic} lie {-self._age_ms / 1e3:.1f} s in the future: the '
                'clocks of the camera and of this machine differ'
            )
        elif self._age_ms > OLD_MS:
            report.note(
                f'images on {self.topic} are {self._age_ms / 1e3:.0f} s old when they arrive: a '
                'recording, or the clocks of the camera and of this machine differ'
            )

    def _on_incompatible(self, event: object) -> None:
        kind = event.last_policy_kind  # type: ignore[attr-defined]
        self._incompatible_policy = qos_policy_name_from_kind(kind)

    def _alternatives(self) -> str:
        """Where images are published instead."""
        other_transport = (
            self.topic.removesuffix('/compressed')
            if self._compressed
            else f'{self.topic}/compressed'
        )
        if self._node.count_publishers(other_transport):
            wanted = 'raw' if self._compressed else 'compressed'
            return f', but on {other_transport}: set image_transport to {wanted}'
        candidates = [
            topic
            for topic, types in self._node.get_topic_names_and_types()
            if any(kind in IMAGE_TYPES for kind in types) and self._node.count_publishers(topic)
        ]
        similar = difflib.get_close_matches(self.topic, candidates, n=SIMILAR_TOPICS, cutoff=0.0)
        return f', images are on {", ".join(similar)}' if similar else ', nobody publishes images'

    def _on_message(self, message: Image | CompressedImage) -> None:
        self.received += 1
        self._last_received_s = time.monotonic()
        try:
            stamp = stamp_ns(message.header)
            if not stamp:
                # Everything downstream is matched by stamp, so such an image leads nowhere.
                raise MessageError(
                    f'an image on {self.topic} has no stamp: set header.stamp in its publisher'
                )
            self._age_ms = (self._node.now_ns() - stamp) / 1e6
            self._add_latency('transport', self._age_ms)
            if self._accept is None or self._accept(stamp):
                self._on_frame(self._to_frame(message))
        except EdgePerceptionError as error:
            self.failed += 1
            self._on_error(error)


def _other_users() -> str:
    """A reason why a publisher on this machine may not be heard."""
    others = other_users_of_shared_memory()
    if not others:
        return ''
    users = ', '.join(map(str, others))
    return f' (programs of user id {users} are here too: nothing passes between users)'


class StampWatch:
    """Notices stamps that jump: a bag that starts anew, a simulation reset, a clock that was set.

    Args:
        node: whose log and diagnostics say so.
        camera: whose images, where the node serves several.
    """

    FORWARD_NS = 10_000_000_000

    def __init__(self, node: ManagedNode, camera: Camera | None = None) -> None:
        self._node = node
        self._latencies = camera.latencies if camera else node.latencies
        self._images = f'images of {camera.name}' if camera and camera.name else 'images'
        self._last_ns = 0
        self._text = ''
        self._jumped_s = 0.0
        self.jumps = 0

    def jumped_back(self, stamp_ns: int) -> bool:
        """Whether `stamp_ns` is before the last one; ask once for each frame."""
        step_ns = stamp_ns - self._last_ns
        known, self._last_ns = self._last_ns != 0, stamp_ns
        if not known or 0 <= step_ns <= self.FORWARD_NS:
            return False
        direction = 'back' if step_ns < 0 else 'forward'
        self.jumps += 1
        self._jumped_s = time.monotonic()
        self._text = f'stamps of {self._images} jumped {direction} by {abs(step_ns) / 1e9:.1f} s'
        self._node.get_logger().warning(
            f'{self._text}: statistics start anew',
            event='stamps_jumped',
            fields={'step_s': step_ns / 1e9},
        )
        self._latencies.reset()
        return step_ns < 0

    def diagnose(self, report: Report) -> None:
        """Say so for a while."""
        report.values['stamp_jumps'] = str(self.jumps)
        ago_s = time.monotonic() - self._jumped_s
        if self.jumps and ago_s < RECENT_S:
            report.warn(f'{self._text}, {ago_s:.0f} s ago')
