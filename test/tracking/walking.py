"""Objects on known paths, and what a detector would say of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_perception.types import Detections

FRAME_NS = 100_000_000


def detections(
    boxes: list[list[float]] | NDArray[np.floating],
    scores: float | list[float] = 0.9,
    classes: int | list[int] = 0,
) -> Detections:
    xyxy = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(xyxy)
    return Detections(
        xyxy,
        np.broadcast_to(np.asarray(scores, np.float32), (count,)).copy(),
        np.broadcast_to(np.asarray(classes, np.int32), (count,)).copy(),
    )


def walkers(count: int, frame: int, *, speed: float = 3.0) -> NDArray[np.float32]:
    """(count, 4) boxes of people who walk right, each on a line of their own."""
    left = 20.0 + speed * frame + 7.0 * np.arange(count)
    top = 10.0 + 120.0 * np.arange(count)
    return np.stack((left, top, left + 40, top + 100), 1).astype(np.float32)
