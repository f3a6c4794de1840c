"""Similarity of boxes and the assignment of detections to tracks."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Boxes = NDArray[np.float64]
Matrix = NDArray[np.float64]
Indices = NDArray[np.intp]

_NONE = np.empty(0, np.intp)
_TINY = 1e-9
# Up to this size the plain assignment is cheaper than looking for what is already decided.
_FEW = 30
_FEW_PAIRS = 300


def intersection_over_union(first_xyxy: Boxes, second_xyxy: Boxes) -> Matrix:
    """IoU of every pair: (n, 4) and (m, 4) corners to (n, m) in [0, 1]."""
    rows, columns = pairs_of(near(first_xyxy, second_xyxy))
    iou = np.zeros((len(first_xyxy), len(second_xyxy)))
    iou[rows, columns] = paired_iou(first_xyxy, rows, second_xyxy, columns)
    return iou


def near(
    first_xyxy: Boxes, second_xyxy: Boxes, margin: NDArray[np.float64] | None = None
) -> NDArray[np.bool_]:
    """Which boxes are worth comparing: (n, 4) and (m, 4) corners to (n, m).

    All that overlap. In a crowd these are few, and it is only these; among few boxes it is all
    pairs, since to tell them apart costs more than to compare them.

    Args:
        first_xyxy: (n, 4) corners.
        second_xyxy: (m, 4) corners.
        margin: (n,) pixels by which both boxes of a pair are widened on all sides.
    """
    shape = (len(first_xyxy), len(second_xyxy))
    if shape[0] * shape[1] <= _FEW_PAIRS:
        return np.ones(shape, bool)
    reach = 0.0 if margin is None else 2.0 * margin
    low, high = first_xyxy.T[:2] - reach, first_xyxy.T[2:] + reach
    left, top, right, bottom = second_xyxy.T
    overlap: NDArray[np.bool_] = left < high[0][:, None]
    overlap &= right > low[0][:, None]
    overlap &= top < high[1][:, None]
    overlap &= bottom > low[1][:, None]
    return overlap


def pairs_of(mask: NDArray[np.bool_]) -> tuple[Indices, Indices]:
    """Rows and columns of the pairs that an (n, m) mask holds, rows ascending."""
    if np.count_nonzero(mask) == mask.size:
        return _all_pairs(*mask.shape)
    # np.nonzero in two dimensions takes 40 times as long on a large mask with few pairs.
    rows, columns = np.divmod(mask.ravel().nonzero()[0], mask.shape[1])
    return rows, columns


@lru_cache(maxsize=256)
def _all_pairs(rows: int, columns: int) -> tuple[Indices, Indices]:
    pairs = np.divmod(np.arange(rows * columns), max(columns, 1))
    for indices in pairs:
        indices.flags.writeable = False
    return pairs


def paired_iou(
    first_xyxy: Boxes,
    rows: Indices,
    second_xyxy: Boxes,
    columns: Indices,
    margin: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """IoU of the pairs (rows, columns): (k,) in [0, 1].

    Args:
        first_xyxy: (n, 4) corners.
        rows: (k,) which of them.
        second_xyxy: (m, 4) corners.
        columns: (k,) which of them.
        margin: (n,) pixels by which both boxes of a pair are widened on all sides.
    """
    first, second = first_xyxy.T.take(rows, 1), second_xyxy.T.take(columns, 1)  # (4, k)
    common = np.minimum(first[2:], second[2:])  # (2, k)
    common -= np.maximum(first[:2], second[:2])
    first_size, second_size = first[2:] - first[:2], second[2:] - second[:2]
    if margin is not None:
        extra = 2.0 * margin.take(rows)
        for size in (common, first_size, second_size):
            size += extra
    np.maximum(common, 0.0, out=common)
    intersection = common[0] * common[1]
    union = first_size[0] * first_size[1] + second_size[0] * second_size[1]
    union -= intersection
    np.maximum(union, _TINY, out=union)
    intersection /= union
    return intersection


def overlap_enough(
    first_xyxy: Boxes, rows: Indices, second_xyxy: Boxes, columns: Indices, min_iou: float
) -> NDArray[np.bool_]:
    """Which of the pairs (rows, columns) have an IoU of `min_iou` or more: (k,)."""
    # Where the edges of both sides lie apart by a part e of the size at most, the intersection is
    # no smaller than (1 - e)^2 of the box and the union no larger than (1 + e)^2. Mostly this
    # decides for all pairs, in half of the time.
    first, second = first_xyxy.T.take(rows, 1), second_xyxy.T.take(columns, 1)
    apart = np.abs(first - second)
    root = math.sqrt(max(min_iou, 0.0))
    limit = (1.0 - root) / (1.0 + root) * (second[2:] - second[:2])
    if np.count_nonzero(apart[:2] + apart[2:] < limit) == limit.size:
        return np.ones(len(rows), bool)
    overlap: NDArray[np.bool_] = paired_iou(first_xyxy, rows, second_xyxy, columns) >= min_iou
    return overlap


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
    if min(similarity.shape) <= _FEW:
        if not np.count_nonzero(possible):
            return _NONE, _NONE
        # Every possible pair is worth more than none.
        worth = np.where(possible, similarity - (min_similarity - _TINY), 0.0)
        rows, columns = linear_sum_assignment(worth, maximize=True)
        kept = possible[rows, columns]
        if np.count_nonzero(kept) == len(kept):
            return rows, columns
        return rows[kept], columns[kept]
    # In a crowd most pairs have no rival. What is left to decide is far smaller: the assignment
    # costs the cube of it.
    rows, columns = pairs_of(possible)
    rivals = np.bincount(rows)[rows] + np.bincount(columns)[columns] > 2
    if not np.count_nonzero(rivals):
        return rows, columns
    open_rows, row_place = np.unique(rows[rivals], return_inverse=True)
    open_columns, column_place = np.unique(columns[rivals], return_inverse=True)
    worth = np.zeros((len(open_rows), len(open_columns)))
    worth[row_place, column_place] = similarity[rows[rivals], columns[rivals]] - (
        min_similarity - _TINY
    )
    chosen_rows, chosen_columns = linear_sum_assignment(worth, maximize=True)
    kept = worth[chosen_rows, chosen_columns] > 0.0
    rows = np.concatenate((rows[~rivals], open_rows[chosen_rows[kept]]))
    columns = np.concatenate((columns[~rivals], open_columns[chosen_columns[kept]]))
    order = rows.argsort()
    return rows[order], columns[order]


def are_all(indices: Indices, count: int) -> bool:
    """Whether `indices` are 0 to `count` - 1, in order: then there is nothing to select."""
    return len(indices) == count and np.count_nonzero(indices == np.arange(count)) == count


def unmatched(indices: Indices, matched: Indices) -> Indices:
    """The entries of `indices` but those at the positions `matched`, in order."""
    if not len(matched):
        return indices
    if len(matched) == len(indices):
        return _NONE
    free = np.ones(len(indices), bool)
    free[matched] = False
    return indices[free]
