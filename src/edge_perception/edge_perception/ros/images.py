"""sensor_msgs images <-> frames."""

from __future__ import annotations

import array
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image

from edge_perception.media.errors import ImageConversionError
from edge_perception.media.pixels import SUPPORTED_ENCODINGS, decode_compressed, to_bgr
from edge_perception.ros.messages import make_header, stamp_ns
from edge_perception.types import Frame

if TYPE_CHECKING:
    from cv_bridge import CvBridge

_JPEG_MAX_SIDE = 65500  # of libjpeg; the format itself would allow 65535
_bridge: CvBridge | None = None


def image_to_frame(message: Image) -> Frame:
    """The frame in a raw image message.

    `bgr8` without row padding is not copied: the frame's image is a view of the message's data
    and keeps them alive. Encodings that this package does not convert by itself go through
    cv_bridge where that is installed.

    Args:
        message: of any encoding in `SUPPORTED_ENCODINGS`, or that cv_bridge turns into bgr8.

    Raises:
        ImageConversionError: the message is malformed, or its encoding is not supported.
    """
    if message.encoding in SUPPORTED_ENCODINGS:
        image = to_bgr(
            message.data,
            message.encoding,
            message.height,
            message.width,
            message.step,
            bool(message.is_bigendian),
        )
    else:
        image = _through_cv_bridge(message)
    return Frame(image, stamp_ns(message.header), message.header.frame_id)


def _through_cv_bridge(message: Image) -> NDArray[np.uint8]:
    """Convert by cv_bridge.

    Raises:
        ImageConversionError: it is not installed, or cannot convert this message.
    """
    global _bridge
    try:
        from cv_bridge import CvBridge
    except ImportError:
        raise ImageConversionError(
            f'cannot convert encoding {message.encoding!r} without cv_bridge; supported: '
            f'{", ".join(SUPPORTED_ENCODINGS)}'
        ) from None
    if _bridge is None:
        _bridge = CvBridge()
    try:
        image = _bridge.imgmsg_to_cv2(message, 'bgr8')
    except Exception as error:  # its C++ part throws RuntimeError, its tables KeyError, NumPy more
        reason = ' '.join(str(error).split())
        raise ImageConversionError(
            f'cv_bridge cannot convert encoding {message.encoding!r}: {reason}'
        ) from error
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageConversionError(
            f'cv_bridge made {image.shape} {image.dtype} of encoding {message.encoding!r}'
        )
    return np.ascontiguousarray(image)


def compressed_to_frame(message: CompressedImage) -> Frame:
    """The frame in a JPEG or PNG message.

    Raises:
        ImageConversionError: another format, or a truncated or damaged file.
    """
    image = decode_compressed(message.data, message.format)
    return Frame(image, stamp_ns(message.header), message.header.frame_id)


def frame_to_image(frame: Frame) -> Image:
    """The frame as a `bgr8` message."""
    height, width = frame.image.shape[:2]
    message = Image(header=make_header(frame.stamp_ns, frame.frame_id))
    message.height = height
    message.width = width
    message.encoding = 'bgr8'
    message.step = width * 3
    message.data = _bytes(frame.image)
    return message


def frame_to_compressed(frame: Frame, quality: int = 90) -> CompressedImage:
    """The frame as a JPEG message, with the format text of image_transport.

    Args:
        frame: what to encode.
        quality: of the JPEG, 1 to 100.

    Raises:
        ImageConversionError: a side is longer than JPEG allows (65500 pixels).
    """
    height, width = frame.image.shape[:2]
    if max(height, width) > _JPEG_MAX_SIDE:
        raise ImageConversionError(
            f'{width} x {height} pixels are too large for JPEG, which ends at {_JPEG_MAX_SIDE}'
        )
    _, encoded = cv2.imencode('.jpg', frame.image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    message = CompressedImage(header=make_header(frame.stamp_ns, frame.frame_id))
    message.format = 'bgr8; jpeg compressed bgr8'
    message.data = _bytes(encoded)
    return message


def _bytes(values: NDArray[np.uint8]) -> array.array[int]:
    """The bytes in the one type that rclpy takes without looking at each of them."""
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(values))  # type: ignore[arg-type]
    return data
