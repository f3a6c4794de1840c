"""Small recordings for the tests, made without the code under test."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 64, 48


def gray_frame(level: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """An image of one gray level, which survives every codec."""
    return np.full((height, width, 3), level, np.uint8)


def level_of(index: int) -> int:
    """The gray level that marks frame `index` of a made video."""
    return 20 + 8 * (index % 25)


def make_video(
    path: Path,
    times: Sequence[int],
    *,
    ticks_per_s: int = 1000,
    codec: str = 'libx264',
    images: Sequence[NDArray[np.uint8]] | None = None,
    container_format: str | None = None,
) -> Path:
    """A video whose frame i has the gray level `level_of(i)` and is shown at `times[i]` ticks."""
    with av.open(str(path), 'w', format=container_format) as container:
        stream = container.add_stream(codec, rate=ticks_per_s)
        first = images[0] if images is not None else gray_frame(0)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
        stream.codec_context.time_base = Fraction(1, ticks_per_s)
        stream.bit_rate = 8_000_000
        if codec == 'libx264':
            stream.options = {'bf': '0', 'g': '5', 'preset': 'ultrafast'}
        for index, time in enumerate(times):
            image = images[index] if images is not None else gray_frame(level_of(index))
            frame = av.VideoFrame.from_ndarray(image, format='bgr24')
            frame.pts, frame.time_base = time, Fraction(1, ticks_per_s)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def marks(images: Sequence[NDArray[np.uint8]]) -> list[int]:
    """The index modulo 25 that the gray level of each image encodes."""
    return [round((float(image.mean()) - 20) / 8) for image in images]
