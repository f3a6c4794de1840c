"""Frames from an image topic, raw or compressed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from edge_perception.ros.images import compressed_to_frame, image_to_frame
from edge_perception.ros.messages import MessageError, stamp_ns
from edge_perception.ros.parameters import parameter
from edge_perception.ros.qos import image_qos
from edge_perception.types import EdgePerceptionError, Frame


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


class ImageInput:
    """A subscription that hands on frames.

    Args:
        node: who subscribes; the topic `image_raw` is resolved with its remappings.
        parameters: transport and QoS.
        on_frame: called with each frame on the executor's thread.
        on_error: called when a message is malformed or carries no stamp.
        accept: called with the stamp of each message; False skips its conversion.
    """

    def __init__(
        self,
        node: Node,
        parameters: ImageInputParameters,
        on_frame: Callable[[Frame], None],
        on_error: Callable[[Exception], None],
        accept: Callable[[int], bool] | None = None,
    ) -> None:
        self.received = 0
        self.failed = 0
        self._node = node
        self._on_frame = on_frame
        self._on_error = on_error
        self._accept = accept
        topic = node.resolve_topic_name('image_raw')
        compressed = parameters.image_transport == 'compressed'
        self.topic = f'{topic}/compressed' if compressed else topic
        self._to_frame = compressed_to_frame if compressed else image_to_frame
        self._subscription = node.create_subscription(
            CompressedImage if compressed else Image,
            self.topic,
            self._on_message,
            image_qos(parameters.image_depth, reliable=parameters.image_reliable),
        )

    def close(self) -> None:
        """Unsubscribe."""
        self._node.destroy_subscription(self._subscription)

    def _on_message(self, message: Image | CompressedImage) -> None:
        self.received += 1
        try:
            stamp = stamp_ns(message.header)
            if not stamp:
                # Everything downstream is matched by stamp, so such an image leads nowhere.
                raise MessageError(
                    f'an image on {self.topic} has no stamp: set header.stamp in its publisher'
                )
            if self._accept is None or self._accept(stamp):
                self._on_frame(self._to_frame(message))
        except EdgePerceptionError as error:
            self.failed += 1
            self._on_error(error)
