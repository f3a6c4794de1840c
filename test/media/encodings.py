"""Each image encoding written out by hand: an image in it, and the BGR that it stands for.

Nothing here calls OpenCV: these are the references of the conversions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 12, 16


@dataclass(frozen=True)
class Sample:
    """An encoded image.

    Attributes:
        data: (rows, bytes of a row) uint8, without padding.
        bgr: (HEIGHT, WIDTH, 3) what it shows.
        tolerance: largest difference that rounding explains.
        border: pixels at the edge that the standard leaves open.
        is_bigendian: byte order.
    """

    data: NDArray[np.uint8]
    bgr: NDArray[np.uint8]
    tolerance: int = 0
    border: int = 0
    is_bigendian: bool = False

    def padded(self, padding: int) -> tuple[bytes, int]:
        """Bytes and step with `padding` bytes of garbage after each row."""
        rows, row_bytes = self.data.shape
        image = np.full((rows, row_bytes + padding), 0xA5, np.uint8)
        image[:, :row_bytes] = self.data
        return image.tobytes(), row_bytes + padding


def _random(*shape: int, seed: int = 0, low: int = 0, high: int = 255) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(low, high, shape, endpoint=True).astype(np.uint8)


def _random_luma(seed: int) -> NDArray[np.uint8]:
    return _random(HEIGHT, WIDTH, seed=seed, low=16, high=235)


def _flat(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return array.reshape(array.shape[0], -1)


def _reordered(*order: int, channels: int) -> Sample:
    """Channels in the given order: `order[k]` is the place of B, G, R."""
    pixels = _random(HEIGHT, WIDTH, channels)
    return Sample(_flat(pixels), pixels[..., list(order)])


def _mono8() -> Sample:
    gray = _random(HEIGHT, WIDTH)
    return Sample(gray, np.repeat(gray[..., None], 3, axis=2))


def _mono16(is_bigendian: bool) -> Sample:
    words = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH))
    words[0, :4] = 0, 128, 129, 65535  # 128 / 257 rounds down, 129 / 257 up
    gray = ((words + 128) // 257).astype(np.uint8)
    data = words.astype('>u2' if is_bigendian else '<u2').view(np.uint8)
    return Sample(data, np.repeat(gray[..., None], 3, axis=2), is_bigendian=is_bigendian)


def _yuv_to_bgr(
    y: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """BT.601, luma 16..235 and chroma 16..240 to 0..255 (ITU-R BT.601-7, 2.5.1 and 2.5.3)."""
    luma = (y.astype(float) - 16) * 255 / 219
    blue_difference = (u.astype(float) - 128) * 255 / 224
    red_difference = (v.astype(float) - 128) * 255 / 224
    blue = luma + 1.772 * blue_difference
    red = luma + 1.402 * red_difference
    green = (luma - 0.114 * blue - 0.299 * red) / 0.587
    return np.clip(np.rint(np.stack([blue, green, red], axis=-1)), 0, 255).astype(np.uint8)


def _packed_422(order: str) -> Sample:
    """Two pixels in four bytes, which share U and V."""
    y = _random_luma(seed=2)
    u = _random(HEIGHT, WIDTH // 2, seed=3)
    v = _random(HEIGHT, WIDTH // 2, seed=4)
    planes = {'U': u, 'V': v, 'Y': y[:, 0::2], 'y': y[:, 1::2]}
    data = np.stack([planes[letter] for letter in order], axis=-1)
    bgr = _yuv_to_bgr(y, np.repeat(u, 2, axis=1), np.repeat(v, 2, axis=1))
    return Sample(_flat(data), bgr, tolerance=2)


def _semi_planar_420(u_first: bool) -> Sample:
    """A luma plane, then rows of U and V in turns, one pair for each 2x2 pixels."""
    y = _random_luma(seed=5)
    u = _random(HEIGHT // 2, WIDTH // 2, seed=6)
    v = _random(HEIGHT // 2, WIDTH // 2, seed=7)
    chroma = np.stack([u, v] if u_first else [v, u], axis=-1).reshape(HEIGHT // 2, WIDTH)

    def enlarge(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return plane.repeat(2, axis=0).repeat(2, axis=1)

    bgr = _yuv_to_bgr(y, enlarge(u), enlarge(v))
    return Sample(np.concatenate([y, chroma]), bgr, tolerance=2)


def _bayer(pattern: str) -> Sample:
    """A mosaic, `pattern` being its first two rows, and its bilinear interpolation."""
    mosaic = _random(HEIGHT, WIDTH, seed=8)
    tile = np.array(list(pattern)).reshape(2, 2)
    letters = np.tile(tile, (HEIGHT // 2, WIDTH // 2))
    bgr = np.zeros((HEIGHT, WIDTH, 3))
    for channel, letter in enumerate('bgr'):
        known = letters == letter
        padded_known = np.pad(known, 1)
        padded = np.pad(np.where(known, mosaic, 0).astype(float), 1)
        for row in range(HEIGHT):
            for column in range(WIDTH):
                if known[row, column]:
                    bgr[row, column, channel] = mosaic[row, column]
                    continue
                window = padded_known[row : row + 3, column : column + 3].copy()
                if letter == 'g':
                    window[::2, ::2] = False  # the four direct neighbours are nearer
                values = padded[row : row + 3, column : column + 3][window]
                bgr[row, column, channel] = values.mean()
    return Sample(mosaic, np.rint(bgr).astype(np.uint8), tolerance=1, border=1)


SAMPLES: dict[str, Callable[[], Sample]] = {
    'bgr8': lambda: _reordered(0, 1, 2, channels=3),
    '8UC3': lambda: _reordered(0, 1, 2, channels=3),
    'rgb8': lambda: _reordered(2, 1, 0, channels=3),
    'bgra8': lambda: _reordered(0, 1, 2, channels=4),
    'rgba8': lambda: _reordered(2, 1, 0, channels=4),
    'mono8': _mono8,
    '8UC1': _mono8,
    'mono16': lambda: _mono16(is_bigendian=False),
    'mono16 big-endian': lambda: _mono16(is_bigendian=True),
    'yuv422': lambda: _packed_422('UYVy'),
    'uyvy': lambda: _packed_422('UYVy'),
    'yuv422_yuy2': lambda: _packed_422('YUyV'),
    'yuyv': lambda: _packed_422('YUyV'),
    'nv12': lambda: _semi_planar_420(u_first=True),
    'nv21': lambda: _semi_planar_420(u_first=False),
    'bayer_rggb8': lambda: _bayer('rggb'),
    'bayer_bggr8': lambda: _bayer('bggr'),
    'bayer_gbrg8': lambda: _bayer('gbrg'),
    'bayer_grbg8': lambda: _bayer('grbg'),
}
"""By encoding; what follows a blank in the name is a note."""


def assert_shows(image: NDArray[np.uint8], sample: Sample) -> None:
    """The image is what the sample stands for, up to rounding."""
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    inner = slice(sample.border, -sample.border or None)
    difference = np.abs(image.astype(int) - sample.bgr)[inner, inner]
    assert difference.max() <= sample.tolerance
