"""sensor_msgs images to frames and back."""

from __future__ import annotations

import array
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from edge_perception.media.errors import ImageConversionError
from edge_perception.media.pixels import SUPPORTED_ENCODINGS
from edge_perception.ros.images import (
    compressed_to_frame,
    frame_to_compressed,
    frame_to_image,
    image_to_frame,
)
from edge_perception.types import Frame

from ..media.encodings import HEIGHT, SAMPLES, WIDTH, assert_shows

STAMP = Time(sec=12, nanosec=345_678_901)
STAMP_NS = 12_345_678_901
HAS_CV_BRIDGE = importlib.util.find_spec('cv_bridge') is not None
needs_cv_bridge = pytest.mark.skipif(not HAS_CV_BRIDGE, reason='cv_bridge is not installed')


def _message(
    data: bytes,
    encoding: str,
    step: int,
    *,
    height: int = HEIGHT,
    width: int = WIDTH,
    is_bigendian: bool = False,
) -> Image:
    message = Image(header=Header(stamp=STAMP, frame_id='front'))
    message.encoding = encoding
    message.height, message.width, message.step = height, width, step
    message.is_bigendian = int(is_bigendian)
    message.data = array.array('B', data)
    return message


@pytest.mark.parametrize('padding', [0, 16])
@pytest.mark.parametrize('name', SAMPLES)
def test_every_encoding_through_the_wire(name: str, padding: int) -> None:
    """A message as it comes out of the middleware gives image, stamp and frame id."""
    sample = SAMPLES[name]()
    data, step = sample.padded(padding)
    sent = _message(data, name.split()[0], step, is_bigendian=sample.is_bigendian)
    frame = image_to_frame(deserialize_message(serialize_message(sent), Image))
    assert_shows(frame.image, sample)
    assert (frame.stamp_ns, frame.frame_id) == (STAMP_NS, 'front')


def test_bgr_shares_the_memory_of_the_message() -> None:
    """Six megabytes a frame are not moved."""
    data, step = SAMPLES['bgr8']().padded(0)
    message = _message(data, 'bgr8', step)
    frame = image_to_frame(message)
    assert np.shares_memory(frame.image, np.frombuffer(message.data, np.uint8))


def test_frame_goes_there_and_back() -> None:
    """Raw: not one bit changes, also of an image that is a view into a larger one."""
    whole = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    frame = Frame(whole[3:33, 5:45], STAMP_NS, 'front')
    message = frame_to_image(frame)
    assert (message.encoding, message.height, message.width, message.step) == ('bgr8', 30, 40, 120)
    assert isinstance(message.data, array.array)
    back = image_to_frame(deserialize_message(serialize_message(message), Image))
    np.testing.assert_array_equal(back.image, frame.image)
    assert (back.stamp_ns, back.frame_id) == (STAMP_NS, 'front')


def test_compressed_goes_there_and_back() -> None:
    """JPEG: the picture stays, and the quality is the one asked for."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    frame = Frame(cv2.GaussianBlur(noise, (0, 0), 4), STAMP_NS, 'front')
    good, poor = frame_to_compressed(frame, 95), frame_to_compressed(frame, 10)
    assert good.format == 'bgr8; jpeg compressed bgr8'
    assert len(good.data) > 1.5 * len(poor.data)
    back = compressed_to_frame(deserialize_message(serialize_message(good), CompressedImage))
    assert np.abs(back.image.astype(int) - frame.image).mean() < 2
    assert (back.stamp_ns, back.frame_id) == (STAMP_NS, 'front')


def test_larger_than_jpeg_allows() -> None:
    """libjpeg ends at 65500 pixels a side."""
    with pytest.raises(ImageConversionError, match='70000 x 1 pixels are too large for JPEG'):
        frame_to_compressed(Frame(np.zeros((1, 70000, 3), np.uint8)))


def test_truncated_jpeg() -> None:
    """A message that lost its end is no image."""
    message = frame_to_compressed(Frame(np.zeros((48, 64, 3), np.uint8)))
    message.data = message.data[:-20]
    with pytest.raises(ImageConversionError, match='truncated'):
        compressed_to_frame(message)


@pytest.mark.skipif(HAS_CV_BRIDGE, reason='cv_bridge is installed, its absence cannot be seen')
def test_other_encodings_without_cv_bridge() -> None:
    """The error lists what can be converted without it."""
    with pytest.raises(ImageConversionError, match="'bgr16' without cv_bridge; supported: bgr8"):
        image_to_frame(_message(bytes(WIDTH * HEIGHT * 6), 'bgr16', WIDTH * 6))


def test_broken_cv_bridge_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it throws, or returns, the node sees a message that cannot be converted."""
    (tmp_path / 'cv_bridge.py').write_text(
        'import numpy\n'
        'class CvBridge:\n'
        '    def imgmsg_to_cv2(self, message, encoding):\n'
        '        if message.encoding == "bgr16":\n'
        '            raise RuntimeError("first\\nsecond")\n'
        '        return numpy.zeros((2, 2))\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'cv_bridge', raising=False)
    monkeypatch.setattr('edge_perception.ros.images._bridge', None)
    with pytest.raises(ImageConversionError, match="encoding 'bgr16': first second"):
        image_to_frame(_message(b'', 'bgr16', 0))
    with pytest.raises(ImageConversionError, match=r"\(2, 2\) float64 of encoding 'other'"):
        image_to_frame(_message(b'', 'other', 0))


@needs_cv_bridge
@pytest.mark.parametrize('name', ['bgr8', 'rgb8', 'bgra8', 'rgba8', 'mono8', 'mono16', 'yuv422'])
def test_agrees_with_cv_bridge(name: str) -> None:
    """Where both convert, both show the same."""
    from cv_bridge import CvBridge

    sample = SAMPLES[name]()
    data, step = sample.padded(0)
    message = _message(data, name, step)
    expected = CvBridge().imgmsg_to_cv2(message, 'bgr8')
    difference = np.abs(image_to_frame(message).image.astype(int) - expected)
    assert difference.max() <= 1


@needs_cv_bridge
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_agrees_with_cv_bridge_on_mosaics(pattern: str) -> None:
    """The same colours in the inside; the border is a matter of taste."""
    from cv_bridge import CvBridge

    data, step = SAMPLES[f'bayer_{pattern}8']().padded(0)
    message = _message(data, f'bayer_{pattern}8', step)
    expected = CvBridge().imgmsg_to_cv2(message, 'bgr8')
    difference = np.abs(image_to_frame(message).image.astype(int) - expected)
    assert difference[1:-1, 1:-1].max() <= 1


@needs_cv_bridge
def test_cv_bridge_takes_over() -> None:
    """Encodings that only it knows come out as BGR of 8 bits."""
    words = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3))
    message = _message(words.astype('<u2').tobytes(), 'bgr16', WIDTH * 6)
    expected = (words + 128) // 257
    assert np.abs(image_to_frame(message).image.astype(int) - expected).max() <= 1


@given(
    encoding=st.sampled_from(SUPPORTED_ENCODINGS),
    height=st.integers(0, 2**32 - 1) | st.integers(0, 8),
    width=st.integers(0, 2**32 - 1) | st.integers(0, 8),
    step=st.integers(0, 2**32 - 1) | st.integers(0, 40),
    size=st.integers(0, 200),
    is_bigendian=st.integers(0, 255),
)
def test_malformed_messages_raise_one_kind_of_error(
    encoding: str, height: int, width: int, step: int, size: int, is_bigendian: int
) -> None:
    """Any numbers that fit a message: an image, or an ImageConversionError of one line."""
    message = Image(encoding=encoding, height=height, width=width, step=step)
    message.is_bigendian = is_bigendian
    message.data = array.array('B', bytes(size))
    try:
        frame = image_to_frame(message)
    except ImageConversionError as error:
        assert '\n' not in str(error)
    else:
        assert frame.image.shape == (height, width, 3)


@given(data=st.binary(max_size=300), image_format=st.text(max_size=30))
def test_malformed_compressed_messages(data: bytes, image_format: str) -> None:
    """Noise is never an image."""
    header = SimpleNamespace(stamp=STAMP, frame_id='')
    message = SimpleNamespace(header=header, format=image_format, data=array.array('B', data))
    for prefix in (b'', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n'):
        message.data = array.array('B', prefix + data)
        with pytest.raises(ImageConversionError):
            compressed_to_frame(message)
