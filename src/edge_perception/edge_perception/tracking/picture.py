"""Small copies of an image: grey ones to see motion in, coloured ones to take looks from."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# Up to here it costs less to make all of an image grey first, and one channel small. Beyond it
# neighbouring pixels are so alike that single ones serve.
_MANY_PIXELS = 3_000_000


def to_small_grey(image: NDArray[np.uint8], size_px: int) -> tuple[NDArray[np.uint8], float]:
    """A small grey image, and its size relative to the original.

    Args:
        image: (h, w, 3) uint8 BGR or (h, w) uint8 grey.
        size_px: its longer side; smaller images stay as they are.
    """
    height, width = image.shape[:2]
    small_wh, scale = _small_size(image, size_px)
    if max(height, width) > 2 * size_px:
        # Averaging over every pixel of a large image costs more than all that follows. Two
        # samples a small pixel in each direction keep most of what averaging is good for.
        double_wh = (2 * small_wh[0], 2 * small_wh[1])
        if width * height < _MANY_PIXELS:
            image = cv2.resize(_to_grey(image), double_wh, interpolation=cv2.INTER_LINEAR)
        else:
            image = cv2.resize(image, double_wh, interpolation=cv2.INTER_NEAREST)
    image = _to_grey(image)
    if image.shape != (small_wh[1], small_wh[0]):
        image = cv2.resize(image, small_wh, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image), scale


def _to_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image


def to_small_colour(image: NDArray[np.uint8], size_px: int) -> tuple[NDArray[np.uint8], float]:
    """A small copy to take colours from, and its size relative to the original.

    Args:
        image: (h, w, 3) uint8 BGR or (h, w) uint8 grey.
        size_px: its longer side; smaller images stay as they are.
    """
    small_wh, scale = _small_size(image, size_px)
    # Single pixels do as well as means of them do, here, and leave most of the image unread.
    return cv2.resize(image, small_wh, interpolation=cv2.INTER_NEAREST), scale


def _small_size(image: NDArray[np.uint8], size_px: int) -> tuple[tuple[int, int], float]:
    """Width and height of the small copy, and its size relative to the original."""
    height, width = image.shape[:2]
    scale = min(1.0, size_px / max(height, width))
    return (max(1, round(width * scale)), max(1, round(height * scale))), scale
