"""What it costs to get an image out of a 1080p message, and into one.

Run: make bench ARGS='test/benchmarks/test_images_benchmark.py --benchmark-group-by=group'

Read the columns as ratios within one run. Converting into one array that is kept was measured too
(OpenCV's dst) and was no faster than a fresh one: the allocator gives the same memory back.
"""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest
from sensor_msgs.msg import Image

from edge_perception.ros.images import (
    compressed_to_frame,
    frame_to_compressed,
    frame_to_image,
    image_to_frame,
)
from edge_perception.types import Frame

WIDTH, HEIGHT = 1920, 1080
BYTES_PER_PIXEL = {
    'bgr8': 3,
    'rgb8': 3,
    'bgra8': 4,
    'mono8': 1,
    'mono16': 2,
    'uyvy': 2,
    'yuyv': 2,
    'nv12': 1,
    'bayer_rggb8': 1,
}


def _message(encoding: str, padding: int = 0) -> Image:
    rows = HEIGHT * 3 // 2 if encoding == 'nv12' else HEIGHT
    step = WIDTH * BYTES_PER_PIXEL[encoding] + padding
    pixels = np.random.default_rng(0).integers(0, 256, (rows, step)).astype(np.uint8)
    data = array.array('B')
    data.frombytes(pixels)
    return Image(encoding=encoding, height=HEIGHT, width=WIDTH, step=step, data=data)


def _picture() -> Frame:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([rows // 5, columns // 8, (rows + columns) // 12], axis=-1)
    return Frame(image.astype(np.uint8))


@pytest.mark.benchmark(group='message to frame')
@pytest.mark.parametrize('padding', [0, 64], ids=['', 'padded'])
@pytest.mark.parametrize('encoding', BYTES_PER_PIXEL)
def test_image_to_frame(benchmark: Any, encoding: str, padding: int) -> None:
    """A fresh array for each frame, except for bgr8 without padding, which is not copied."""
    message = _message(encoding, padding)
    frame = benchmark(image_to_frame, message)
    assert frame.image.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.benchmark(group='frame to message')
@pytest.mark.parametrize('convert', [frame_to_image, frame_to_compressed])
def test_frame_to_message(benchmark: Any, convert: Any) -> None:
    """Raw, and as JPEG."""
    assert len(benchmark(convert, _picture()).data) > 0


@pytest.mark.benchmark(group='message to frame')
def test_compressed_to_frame(benchmark: Any) -> None:
    """JPEG, for comparison."""
    frame = benchmark(compressed_to_frame, frame_to_compressed(_picture()))
    assert frame.image.shape == (HEIGHT, WIDTH, 3)
