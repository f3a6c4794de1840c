"""What objects look like: the colours of their upper and of their lower half.

Histograms of lightness and of both colour axes (CIE L*a*b*) over a grid of points, compared by
the Bhattacharyya coefficient, as in colour-based tracking (Comaniciu et al., 2003; Perez et al.,
2002). It tells people apart who cross, and knows somebody again who was hidden; twins it does not.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# Where the points lie, in parts of a box's width and height: beside them is background, above is
# the head and below are the feet.
_COLUMNS = np.linspace(0.2, 0.8, 7)
_ROWS = np.concatenate((np.linspace(0.12, 0.48, 8), np.linspace(0.52, 0.88, 8)))
_POINT_X, _POINT_Y = np.tile(_COLUMNS, len(_ROWS)), np.repeat(_ROWS, len(_COLUMNS))
_PARTS, _CHANNELS, _BINS = 2, 3, 16
LOOK_SIZE = _PARTS * _CHANNELS * _BINS
"""Length of a look."""

_FIRST_BIN = np.arange(_PARTS * _CHANNELS).reshape(_PARTS, 1, _CHANNELS) * _BINS
# Clothes lie near grey on the colour axes.
_COLOUR_GAIN = 3.0
# Part of the points in each half that must be seen.
_MIN_VISIBLE = 0.3


def looks_of(
    image: NDArray[np.uint8],
    scale: float,
    boxes_xyxy: NDArray[np.float64],
    wanted: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Looks of the objects in boxes.

    Points in boxes that are nearer (their lower edge is lower) are left out.

    Args:
        image: (h, w, 3) uint8 BGR or (h, w) uint8 grey, small.
        scale: its size relative to the original.
        boxes_xyxy: (n, 4) pixels of the original image.
        wanted: (n,) of which boxes, k of them; None: of all. The others may be in front of them.

    Returns:
        (k, LOOK_SIZE) float32 of length 1, or zeros where too little of a box is seen; and the
        part that is seen of each, (k,) float32, 0 in the same case.
    """
    corners = (boxes_xyxy * scale).T
    all_left, all_top, all_right, all_bottom = corners
    if wanted is not None:
        corners = corners.compress(wanted, 1)
    count = corners.shape[1]
    left, top, right, bottom = corners[:, :, None]
    x, y = left + (right - left) * _POINT_X, top + (bottom - top) * _POINT_Y
    height, width = image.shape[:2]
    seen = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    touching = (left < all_right) & (right > all_left) & (top < all_bottom) & (bottom < all_bottom)
    for behind, front in zip(*touching.nonzero(), strict=True):
        px, py = x[behind], y[behind]
        seen[behind] &= ~(
            (px > all_left[front])
            & (px < all_right[front])
            & (py > all_top[front])
            & (py < all_bottom[front])
        )
    column = np.clip(np.rint(x), 0, width - 1).astype(np.intp)
    row = np.clip(np.rint(y), 0, height - 1).astype(np.intp)
    pixels = image[row, column]
    if image.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, 2)
    colour = cv2.cvtColor(pixels, cv2.COLOR_BGR2LAB).astype(np.float32)
    colour[..., 1:] = np.clip((colour[..., 1:] - 128.0) * _COLOUR_GAIN + 128.0, 0.0, 255.0)
    # Each value counts for the two nearest bins, so that a change of light does not jump.
    position = np.clip(colour * (_BINS / 256.0) - 0.5, 0.0, _BINS - 1.001)
    lower = position.astype(np.intp)
    share = position - lower
    share *= seen[..., None]
    in_lower = seen[..., None] - share
    points = (count, _PARTS, len(_POINT_X) // _PARTS, _CHANNELS)
    place = lower.reshape(points) + _FIRST_BIN
    place += (np.arange(count) * LOOK_SIZE).reshape(-1, 1, 1, 1)
    place = place.ravel()
    histogram = np.bincount(place, in_lower.ravel(), count * LOOK_SIZE + 1)
    histogram[1:] += np.bincount(place, share.ravel(), count * LOOK_SIZE + 1)[:-1]
    looks = np.sqrt(histogram[:-1], dtype=np.float64).astype(np.float32).reshape(count, LOOK_SIZE)
    visible = seen.reshape(points[:3]).mean(2, dtype=np.float32).min(1)
    visible[visible < _MIN_VISIBLE] = 0.0
    # Both halves and all channels count alike, however much of a half is seen.
    blocks = looks.reshape(count, _PARTS * _CHANNELS, _BINS)
    blocks /= np.maximum(np.linalg.norm(blocks, axis=2, keepdims=True), 1e-9)
    looks *= (visible > 0.0)[:, None] / np.sqrt(_PARTS * _CHANNELS, dtype=np.float32)
    return looks, visible


def unlikeness(
    first: NDArray[np.float32], second: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """How different looks are: (n, m) from 0, the same, to 1; and of which pairs it is known.

    Args:
        first: (n, LOOK_SIZE).
        second: (m, LOOK_SIZE).
    """
    known, known_second = first.any(1), second.any(1)
    return 1.0 - first @ second.T, np.logical_and.outer(known, known_second)


def mixed(
    old: NDArray[np.float32], new: NDArray[np.float32], rate: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Looks after new ones, of which the part `rate` (n,) counts; unknown ones do not count."""
    known, known_new = old.any(1), new.any(1)
    part = np.where(known, np.where(known_new, rate, 0.0), 1.0)[:, None]
    # In histograms, of which looks are the roots.
    look: NDArray[np.float32] = np.sqrt(old * old * (1.0 - part) + new * new * part)
    return look
