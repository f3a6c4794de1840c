"""Sizes are read from headers; what would decode into too much is refused unread."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.api import RequestError
from edge_perception.api.images import MAX_SCANS, check_image

sides = st.integers(1, 400)


@given(height=sides, width=sides, suffix=st.sampled_from(['.png', '.jpg']), data=st.data())
def test_limit_is_on_the_pixels_of_the_image(height, width, suffix, data):
    options = []
    if suffix == '.jpg' and data.draw(st.booleans()):
        options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    image = np.zeros((height, width, 3), np.uint8)
    encoded = cv2.imencode(suffix, image, options)[1].tobytes()
    check_image(encoded, height * width)
    with pytest.raises(RequestError, match=f'{width} x {height} pixels') as refusal:
        check_image(encoded, height * width - 1)
    assert refusal.value.status in (413,)


@given(st.binary(max_size=300), st.sampled_from([b'', b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff']))
def test_any_bytes_are_refused_or_within_the_limit(tail, head):
    try:
        check_image(head + tail, 1000)
    except RequestError as refusal:
        assert refusal.status in (400, 413, 415)
        assert '\n' not in refusal.detail


def test_size_behind_a_preview_of_another_size():
    """An EXIF preview is a whole JPEG in a segment before the frame header."""
    preview = cv2.imencode('.jpg', np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    picture = cv2.imencode('.jpg', np.zeros((90, 120, 3), np.uint8))[1].tobytes()
    segment = b'\xff\xe1' + struct.pack('>H', len(preview) + 2) + preview
    with pytest.raises(RequestError, match='120 x 90'):
        check_image(picture[:2] + segment + picture[2:], 1000)


def png_header(width, height):
    chunk = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + chunk + struct.pack('>I', zlib.crc32(chunk))
    )


@pytest.mark.parametrize('size', [(0, 5), (5, 0)])
def test_image_without_pixels(size):
    with pytest.raises(RequestError, match='no pixels'):
        check_image(png_header(*size), 1000)


def test_jpeg_of_very_many_scans():
    picture = cv2.imencode('.jpg', np.zeros((90, 120, 3), np.uint8))[1].tobytes()
    with pytest.raises(RequestError, match='scans'):
        check_image(picture + b'\xff\xda' * MAX_SCANS, 10**9)
