"""Similarity of boxes and the assignment of detections to tracks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Boxes = NDArray[np.float64]
Matrix = NDArray[np.float64]
Indices = NDArray[np.intp]

_TINY = 1e-9
# Up to this size the plain assignment is cheaper than looking for what is already decided.
_FEW = 30


def intersection_over_union(first_xyxy: Boxes, second_xyxy: Boxes) -> Matrix:
    """IoU of every pair: (n, 4) and (m, 4) corners to (n, m) in [0, 1]."""
    return _overlap(first_xyxy, second_xyxy)[0]


def generalized_iou(first_xyxy: Boxes, second_xyxy: Boxes) -> Matrix:
    """GIoU of every pair in [-1, 1] (Rezatofighi et al., CVPR 2019)."""
    iou, union = _overlap(first_xyxy, second_xyxy)
    hull = _hull_size(first_xyxy, second_xyxy)
    hull_area = hull[0] * hull[1]
    return iou - (hull_area - union) / np.maximum(hull_area, _TINY)


def distance_iou(first_xyxy: Boxes, second_xyxy: Boxes) -> Matrix:
    """DIoU of every pair in [-1, 1] (Zheng et al., AAAI 2020)."""
    iou, _ = _overlap(first_xyxy, second_xyxy)
    width, height = _hull_size(first_xyxy, second_xyxy)
    first_centre = (first_xyxy[:, :2] + first_xyxy[:, 2:]) * 0.5
    second_centre = (second_xyxy[:, :2] + second_xyxy[:, 2:]) * 0.5
    offset = first_centre.T[:, :, None] - second_centre.T[:, None, :]  # (2, n, m)
    distance_sq = np.einsum('cnm,cnm->nm', offset, offset)
    return iou - distance_sq / np.maximum(width * width + height * height, _TINY)


def _overlap(first_xyxy: Boxes, second_xyxy: Boxes) -> tuple[Matrix, Matrix]:
    """IoU and union area of every pair."""
    first, second = first_xyxy.T[:, :, None], second_xyxy.T[:, None, :]  # (4, n, 1), (4, 1, m)
    size = np.minimum(first[2:], second[2:])  # (2, n, m)
    size -= np.maximum(first[:2], second[:2])
    np.maximum(size, 0.0, out=size)
    intersection = size[0] * size[1]
    first_size, second_size = first[2:] - first[:2], second[2:] - second[:2]
    union = first_size[0] * first_size[1] + second_size[0] * second_size[1]
    union = union - intersection
    return intersection / np.maximum(union, _TINY), union


def _hull_size(first_xyxy: Boxes, second_xyxy: Boxes) -> NDArray[np.float64]:
    """Width and height of the smallest box around every pair: (2, n, m)."""
    first, second = first_xyxy.T[:, :, None], second_xyxy.T[:, None, :]
    hull: NDArray[np.float64] = np.maximum(first[2:], second[2:])
    hull -= np.minimum(first[:2], second[:2])
    return hull


def assign(similarity: Matrix, min_similarity: float) -> tuple[Indices, Indices]:
    """Optimal one-to-one assignment of rows to columns.

    Pairs below `min_similarity` count for nothing, so that an impossible pair can't push a good
    one aside. The sum over the others is the largest possible (Kuhn 1955; Crouse 2016).

    Args:
        similarity: (n, m), larger is better.
        min_similarity: pairs under it are never assigned.

    Returns:
        Row and column indices of the assigned pairs, rows ascending.
    """
    possible = similarity >= min_similarity
    if not possible.any():
        empty = np.empty(0, np.intp)
        return empty, empty
    # Every possible pair is worth more than none.
    worth = np.where(possible, similarity - (min_similarity - _TINY), 0.0)
    if min(worth.shape) <= _FEW:
        rows, columns = linear_sum_assignment(worth, maximize=True)
        kept = possible[rows, columns]
        return rows[kept], columns[kept]
    # In a crowd most pairs have no rival. What is left to decide is far smaller: the assignment
    # costs the cube of it.
    alone = (possible.sum(1) == 1)[:, None] & (possible.sum(0) == 1) & possible
    sure_rows, sure_columns = np.nonzero(alone)
    open_rows = np.flatnonzero(possible.any(1) & ~alone.any(1))
    open_columns = np.flatnonzero(possible.any(0) & ~alone.any(0))
    rows, columns = linear_sum_assignment(worth[np.ix_(open_rows, open_columns)], maximize=True)
    rows, columns = open_rows[rows], open_columns[columns]
    kept = possible[rows, columns]
    rows = np.concatenate((sure_rows, rows[kept]))
    columns = np.concatenate((sure_columns, columns[kept]))
    order = np.argsort(rows)
    return rows[order], columns[order]


def unmatched(indices: Indices, matched: Indices) -> Indices:
    """The entries of `indices` but those at the positions `matched`, in order."""
    if not len(matched):
        return indices
    free = np.ones(len(indices), bool)
    free[matched] = False
    return indices[free]


def widened_iou(first_xyxy: Boxes, second_xyxy: Boxes, margin: NDArray[np.float64]) -> Matrix:
    """IoU of every pair after both boxes were widened on all sides: (n, m) in [0, 1].

    Args:
        first_xyxy: (n, 4) corners.
        second_xyxy: (m, 4) corners.
        margin: (n,) pixels, the same for both boxes of a pair.
    """
    first, second = first_xyxy.T[:, :, None], second_xyxy.T[:, None, :]
    extra = 2.0 * margin[:, None]
    size = np.minimum(first[2:], second[2:])  # (2, n, m)
    size -= np.maximum(first[:2], second[:2])
    size += extra
    np.maximum(size, 0.0, out=size)
    intersection = size[0] * size[1]
    first_size, second_size = first[2:] - first[:2] + extra, second[2:] - second[:2] + extra
    union = first_size[0] * first_size[1] + second_size[0] * second_size[1]
    union -= intersection
    return intersection / np.maximum(union, _TINY)


def paired_iou(first_xyxy: Boxes, second_xyxy: Boxes) -> NDArray[np.float64]:
    """IoU of the first box with the first, the second with the second ...: (n,)."""
    size = np.minimum(first_xyxy[:, 2:], second_xyxy[:, 2:])
    size = np.maximum(size - np.maximum(first_xyxy[:, :2], second_xyxy[:, :2]), 0.0)
    intersection = size[:, 0] * size[:, 1]
    union = (first_xyxy[:, 2:] - first_xyxy[:, :2]).prod(1) - intersection
    union += (second_xyxy[:, 2:] - second_xyxy[:, :2]).prod(1)
    return intersection / np.maximum(union, _TINY)
