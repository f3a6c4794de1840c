"""The bytes of image messages to BGR arrays; the same for live messages and for those in bags.

The encodings are those of sensor_msgs/image_encodings.hpp. Colours are converted as OpenCV, and
with it cv_bridge, converts them: YUV is BT.601 with luma 16..235, mono16 is scaled by 255/65535.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_perception.media.errors import ImageConversionError


@dataclass(frozen=True)
class _Layout:
    """How an encoding lies in memory, and OpenCV's conversion of it to BGR.

    Attributes:
        bytes_per_pixel: in a row of the image (of the luma plane, for planar ones).
        channels: of the array that the conversion expects.
        code: of cv2.cvtColor; None when the bytes are BGR already.
        even_width: two neighbours share their colour, so the width must be even.
        chroma_rows: rows of interleaved chroma follow the luma plane, half as many as it has.
    """

    bytes_per_pixel: int
    channels: int
    code: int | None
    even_width: bool = False
    chroma_rows: bool = False


_BGR = _Layout(3, 3, None)
_GRAY = _Layout(1, 1, cv2.COLOR_GRAY2BGR)
_UYVY = _Layout(2, 2, cv2.COLOR_YUV2BGR_UYVY, even_width=True)
_YUYV = _Layout(2, 2, cv2.COLOR_YUV2BGR_YUYV, even_width=True)
_MONO16 = _Layout(2, 1, cv2.COLOR_GRAY2BGR)

_LAYOUTS = {
    'bgr8': _BGR,
    '8UC3': _BGR,
    'rgb8': _Layout(3, 3, cv2.COLOR_RGB2BGR),
    'bgra8': _Layout(4, 4, cv2.COLOR_BGRA2BGR),
    'rgba8': _Layout(4, 4, cv2.COLOR_RGBA2BGR),
    'mono8': _GRAY,
    '8UC1': _GRAY,
    'mono16': _MONO16,
    'yuv422': _UYVY,
    'uyvy': _UYVY,
    'yuv422_yuy2': _YUYV,
    'yuyv': _YUYV,
    'nv12': _Layout(1, 1, cv2.COLOR_YUV2BGR_NV12, even_width=True, chroma_rows=True),
    'nv21': _Layout(1, 1, cv2.COLOR_YUV2BGR_NV21, even_width=True, chroma_rows=True),
    # ROS names a mosaic by its first two rows from the left, OpenCV by the second and third
    # pixel of the second row: the same letters mean another mosaic.
    'bayer_rggb8': _Layout(1, 1, cv2.COLOR_BayerBG2BGR),
    'bayer_bggr8': _Layout(1, 1, cv2.COLOR_BayerRG2BGR),
    'bayer_gbrg8': _Layout(1, 1, cv2.COLOR_BayerGR2BGR),
    'bayer_grbg8': _Layout(1, 1, cv2.COLOR_BayerGB2BGR),
}

SUPPORTED_ENCODINGS = tuple(_LAYOUTS)
"""Encodings that `to_bgr` converts by itself."""

_BAYER = frozenset(name for name in _LAYOUTS if name.startswith('bayer'))
_MIN_BAYER_SIZE = 3
_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_PNG_END = b'IEND\xaeB`\x82'
_JPEG_START = b'\xff\xd8\xff'
_JPEG_END = b'\xff\xd9'
_JPEG_START_OF_SCAN = 0xDA


def to_bgr(
    data: Any,
    encoding: str,
    height: int,
    width: int,
    step: int,
    is_bigendian: bool = False,
) -> NDArray[np.uint8]:
    """Convert the pixels of a sensor_msgs/Image.

    BGR without row padding is returned as a view of `data`, without a copy. The result is always
    C-contiguous; it is read-only when `data` is.

    Args:
        data: the bytes, anything with the buffer protocol (array.array, bytes, ndarray).
        encoding: one of `SUPPORTED_ENCODINGS`.
        height: rows of the image.
        width: columns of the image.
        step: bytes from one row to the next; for nv12 and nv21 those of the luma plane, whose
            step the chroma rows share.
        is_bigendian: byte order of 16-bit pixels.

    Returns:
        (height, width, 3) uint8 BGR.

    Raises:
        ImageConversionError: another encoding, a size of zero, a step too small, or not exactly
            as many bytes as step and height say.
    """
    layout = _LAYOUTS.get(encoding)
    if layout is None:
        raise ImageConversionError(
            f'cannot convert encoding {encoding!r}; supported: {", ".join(SUPPORTED_ENCODINGS)}'
        )
    if height <= 0 or width <= 0:
        raise ImageConversionError(f'an image of {width} x {height} pixels')
    row_bytes = width * layout.bytes_per_pixel
    if step < row_bytes:
        raise ImageConversionError(
            f'step is {step} bytes, but {width} pixels of {encoding} take {row_bytes}'
        )
    if layout.even_width and width % 2:
        raise ImageConversionError(f'{encoding} needs an even width, got {width}')
    if layout.chroma_rows and height % 2:
        raise ImageConversionError(f'{encoding} needs an even height, got {height}')
    if encoding in _BAYER and min(height, width) < _MIN_BAYER_SIZE:
        raise ImageConversionError(
            f'{encoding} needs {_MIN_BAYER_SIZE} x {_MIN_BAYER_SIZE} pixels or more, '
            f'got {width} x {height}'
        )
    rows = height + height // 2 if layout.chroma_rows else height
    size = memoryview(data).nbytes
    if size != rows * step:
        raise ImageConversionError(
            f'{size} bytes of data, but {rows} rows of {step} bytes are {rows * step}'
        )
    if layout is _MONO16:
        pixels = _to_eight_bits(data, height, width, step, is_bigendian)
    else:
        shape = (rows, width) if layout.channels == 1 else (rows, width, layout.channels)
        strides = (step, layout.bytes_per_pixel, 1)[: len(shape)]
        pixels = np.ndarray(shape, np.uint8, buffer=data, strides=strides)
    if layout.code is None:
        return np.ascontiguousarray(pixels)
    try:
        converted = cv2.cvtColor(pixels, layout.code)
    except cv2.error as error:
        raise ImageConversionError(f'{encoding} {width} x {height}: {error.err}') from error
    return np.asarray(converted, np.uint8)


def _to_eight_bits(
    data: Any, height: int, width: int, step: int, is_bigendian: bool
) -> NDArray[np.uint8]:
    """16-bit pixels to (h, w) uint8, 65535 becoming 255."""
    order = '>u2' if is_bigendian else '<u2'
    words = np.ndarray((height, width), order, buffer=data, strides=(step, 2))
    native = np.ascontiguousarray(words, np.uint16)
    return np.asarray(cv2.convertScaleAbs(native, alpha=255 / 65535), np.uint8)


def decode_compressed(
    data: Any, image_format: str = '', *, oriented: bool = False
) -> NDArray[np.uint8]:
    """Decode the bytes of a sensor_msgs/CompressedImage.

    Args:
        data: a whole JPEG or PNG file, anything with the buffer protocol.
        image_format: the message's `format`: `jpeg`, `png`, or image_transport's
            `<encoding>; jpeg compressed bgr8`. Which of the two it is, the bytes say.

        oriented: turn the picture as its EXIF orientation says, for photographs. Otherwise rows
            stay as they were sent, so that pixels agree with the camera's calibration.

    Returns:
        (h, w, 3) uint8 BGR.

    Raises:
        ImageConversionError: depth images, other formats, and truncated files, the rest of
            which OpenCV would fill with grey. A flipped bit in a JPEG cannot be noticed.
    """
    if 'compresseddepth' in image_format.lower():
        raise ImageConversionError(f'format {image_format!r} is a depth image, not a colour one')
    raw = bytes(data)
    if raw.startswith(_JPEG_START):
        kind, complete = 'JPEG', _ends_jpeg(raw)
    elif raw.startswith(_PNG_SIGNATURE):
        kind, complete = 'PNG', _PNG_END in raw[-64:]
    else:
        raise ImageConversionError(
            f'{len(raw)} bytes of format {image_format!r} are neither JPEG nor PNG'
        )
    if not complete:
        raise ImageConversionError(f'the {kind} is truncated: its end mark is missing')
    try:
        flags = 0 if oriented else cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR | flags)
    except cv2.error as error:
        raise ImageConversionError(f'the {kind} cannot be decoded: {error.err}') from error
    if image is None:
        raise ImageConversionError(f'the {kind} cannot be decoded: it is damaged')
    return np.asarray(image, np.uint8)


def _ends_jpeg(raw: bytes) -> bool:
    """Whether an end mark follows the pixels (ITU-T T.81, annex B).

    The segments before the pixels are skipped, for an embedded preview has an end mark too;
    among the pixels the mark cannot occur. Cameras may pad after it.
    """
    position = 2
    while position + 4 <= len(raw):
        if raw[position] != 0xFF:
            return False
        marker = raw[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        position += 2 + int.from_bytes(raw[position + 2 : position + 4], 'big')
        if marker == _JPEG_START_OF_SCAN:
            return raw.rfind(_JPEG_END, position) >= 0
    return False
