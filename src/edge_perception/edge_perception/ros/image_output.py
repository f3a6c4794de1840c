"""Frames to an image topic, raw and compressed, for whoever subscribes."""

from __future__ import annotations

from sensor_msgs.msg import CompressedImage, Image

from edge_perception.ros.images import frame_to_compressed, frame_to_image
from edge_perception.ros.lifecycle import ManagedNode
from edge_perception.ros.qos import image_qos
from edge_perception.types import Frame


class ImageOutput:
    """Publishers of a topic and of its JPEG images, which last until the node's cleanup.

    Args:
        node: who publishes.
        topic: of the raw images; `/compressed` is added for the others.
        compressed_depth: how many of these may be on their way again.
    """

    def __init__(self, node: ManagedNode, topic: str, *, compressed_depth: int = 5) -> None:
        self._raw_publisher = node.advertise(Image, topic, image_qos(5, reliable=True))
        self._compressed_publisher = node.advertise(
            CompressedImage, f'{topic}/compressed', image_qos(compressed_depth, reliable=True)
        )

    @property
    def is_watched(self) -> bool:
        """Whether anybody subscribes."""
        return bool(
            self._raw_publisher.get_subscription_count()
            or self._compressed_publisher.get_subscription_count()
        )

    def publish(self, frame: Frame, jpeg_quality: int) -> None:
        """Publish a frame in the forms that somebody subscribes to.

        Making a message of an image costs more than all else that a source does.

        Args:
            frame: the frame.
            jpeg_quality: of the compressed image, 1 to 100.
        """
        if self._raw_publisher.get_subscription_count():
            self._raw_publisher.publish(frame_to_image(frame))
        if self._compressed_publisher.get_subscription_count():
            self._compressed_publisher.publish(frame_to_compressed(frame, jpeg_quality))
