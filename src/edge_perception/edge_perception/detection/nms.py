"""Greedy class-aware non-maximum suppression with a bound on its cost."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def non_maximum_suppression(
    boxes_xyxy: NDArray[np.floating[Any]],
    scores: NDArray[np.floating[Any]],
    class_ids: NDArray[np.integer[Any]],
    *,
    iou_threshold: float,
    max_detections: int = 300,
    max_candidates: int = 1000,
) -> NDArray[np.intp]:
    """Which boxes stay when every box hides those of its class that overlap it and score less.

    Boxes of different classes are moved apart by more than the extent of all boxes, so that one
    class-blind pass keeps the classes apart.

    Args:
        boxes_xyxy: (n, 4) left, top, right, bottom.
        scores: (n,), above 0: boxes without any score do not stay.
        class_ids: (n,).
        iou_threshold: a box goes when its IoU with a better one is above this.
        max_detections: how many stay at most.
        max_candidates: only so many best boxes are looked at: the cost is quadratic in them.

    Returns:
        (m,) indices into the arguments, best score first.
    """
    candidates = np.arange(len(scores))
    if len(scores) > max_candidates:
        candidates = np.argpartition(-scores, max_candidates - 1)[:max_candidates]
        candidates.sort()
    if not len(candidates):
        return candidates
    boxes = boxes_xyxy[candidates].astype(np.float64)
    extent = boxes.max() - boxes.min() + 1
    boxes_xywh = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
    boxes_xywh[:, :2] += (class_ids[candidates] * extent)[:, None]
    kept = cv2.dnn.NMSBoxes(
        boxes_xywh,  # type: ignore[arg-type]
        scores[candidates].astype(np.float32),  # type: ignore[arg-type]
        score_threshold=0.0,
        nms_threshold=iou_threshold,
    )
    return candidates[np.asarray(kept, dtype=np.intp).reshape(-1)][:max_detections]
