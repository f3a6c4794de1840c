"""Motion of the picture between two frames: of boxes, and of the camera.

Sparse pyramidal Lucas-Kanade (Lucas & Kanade 1981; Bouguet 2000) on a small grey image, checked
forward and backward (Kalal et al., 2010). Points are taken from a fixed lattice over the image and
each is computed at most once, when it is first asked for. So the motion at a place never depends
on who asked before: a late detection that changes the tracks of a past frame gets exactly the
answers it had got in time, and pays only for the points that were not asked for yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

LATTICE_PX = 3
"""Distance of lattice points on the small image."""

_WINDOW = (9, 9)
_PYRAMID_LEVELS = 3
# On the way back, which begins where the point should come out.
_PYRAMID_LEVELS_BACK = 1
_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 10, 0.03)
# OpenCV compares the patches of every point that it found, unless it is asked for this instead,
# which it knows already.
_NO_ERROR = cv2.OPTFLOW_LK_GET_MIN_EIGENVALS
# Forward-backward error in pixels of the small image above which a point was lost.
_MAX_ERROR_PX = 0.5
# Where the points of a box lie, in parts of its width and height: the torso and the head. The
# border shows the background, the legs swing.
_COLUMNS = np.array([0.26, 0.42, 0.58, 0.74])
_ROWS = np.array([0.06, 0.15, 0.25, 0.35, 0.45, 0.56, 0.68, 0.82])
POINTS_PER_BOX = len(_COLUMNS) * len(_ROWS)
_POINT_X, _POINT_Y = np.tile(_COLUMNS, len(_ROWS)), np.repeat(_ROWS, len(_COLUMNS))
_MIN_POINTS = 6
# Points for the camera's motion: columns and rows over the image.
_BACKGROUND = (10, 7)
# Spread of the shifts on one rigid object, in pixels of the small image, and the least that a
# shift differs from the background's to count as motion.
_SPREAD_PX = 0.7
_MOVING_PX = 0.4
# How far the figure in front reaches out of its box, in parts of its width, and the hidden part
# above which a box is left to the filter.
_MARGIN = 0.1
_MAX_HIDDEN = 0.3
# Change of the grey value, blurred, that is more than noise.
_CHANGED_LEVEL = 12
# A camera shift under this is noise: a fixed camera must not make boxes creep.
_STILL_PX = 0.1


@dataclass(frozen=True)
class BoxMotion:
    """How n boxes moved with the picture.

    Attributes:
        velocity: (2, n) of the centre relative to the background, pixels of the original image
            a second.
        velocity_var: (n,) variance of each component.
        support: (n,) part of the points that agree, in [0, 1]; 0 where the flow failed.
    """

    velocity: NDArray[np.float64]
    velocity_var: NDArray[np.float64]
    support: NDArray[np.float64]


class PictureMotion:
    """Motion from one image to the next.

    Attributes:
        interval_s: time between the images.
    """

    def __init__(
        self,
        previous: NDArray[np.uint8],
        current: NDArray[np.uint8],
        *,
        scale: float,
        interval_s: float,
    ) -> None:
        """Compute nothing yet.

        Args:
            previous: (h, w) uint8, small grey image.
            current: (h, w) uint8, the next one.
            scale: size of the small image relative to the original.
            interval_s: time between them.
        """
        self.interval_s = interval_s
        self._previous, self._current = previous, current
        self._scale = scale
        height, width = previous.shape
        self._lattice_hw = (
            (height + LATTICE_PX - 1) // LATTICE_PX,
            (width + LATTICE_PX - 1) // LATTICE_PX,
        )
        count = self._lattice_hw[0] * self._lattice_hw[1]
        self._shift = np.zeros((count, 2), np.float32)
        self._valid = np.zeros(count, bool)
        self._known = np.zeros(count, bool)
        self._background: NDArray[np.float64] | None = None

    def _cells(
        self, x_px: NDArray[np.float64], y_px: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Lattice cells of points of the small image, 0 for those outside; which are inside."""
        rows, columns = self._lattice_hw
        column = np.rint(x_px / LATTICE_PX).astype(np.int64)
        row = np.rint(y_px / LATTICE_PX).astype(np.int64)
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        return np.where(inside, row * columns + column, 0), inside

    def _compute(self, *cells: NDArray[np.int64]) -> None:
        """Find the shifts of those lattice cells that are not known yet."""
        asked = np.zeros(len(self._known), bool)
        for some in cells:
            asked[some] = True
        asked &= ~self._known
        missing = asked.nonzero()[0]
        if not len(missing):
            return
        row, column = np.divmod(missing, self._lattice_hw[1])
        start = np.stack((column, row), 1).astype(np.float32) * LATTICE_PX
        end, found, _ = cv2.calcOpticalFlowPyrLK(
            self._previous,
            self._current,
            start,
            None,
            winSize=_WINDOW,
            maxLevel=_PYRAMID_LEVELS,
            criteria=_CRITERIA,
            flags=_NO_ERROR,
        )
        self._known |= asked
        kept = found.ravel().nonzero()[0]
        if not len(kept):
            return
        missing, start, end = missing[kept], start[kept], end[kept]
        back, found_back, _ = cv2.calcOpticalFlowPyrLK(
            self._current,
            self._previous,
            end,
            start.copy(),
            winSize=_WINDOW,
            maxLevel=_PYRAMID_LEVELS_BACK,
            criteria=_CRITERIA,
            flags=cv2.OPTFLOW_USE_INITIAL_FLOW | _NO_ERROR,
        )
        error = np.abs(back - start).max(1)
        self._shift[missing] = end - start
        self._valid[missing] = found_back.ravel().astype(bool) & (error < _MAX_ERROR_PX)

    @property
    def camera(self) -> NDArray[np.float64]:
        """Motion of the background: (3,) shift x, y in small pixels, and scale minus one.

        Computed once, from points all over the image, robust against what moves in front of it.
        """
        if self._background is None:
            self._background = self._camera_motion()
        return self._background

    def _camera_motion(self) -> NDArray[np.float64]:
        height, width = self._previous.shape
        x, y = _background_points(height, width)
        cell, inside = self._cells(x, y)
        self._compute(cell[inside])
        valid = inside & self._valid[cell]
        motion = np.zeros(3)
        if np.count_nonzero(valid) < _MIN_POINTS:
            return motion
        shift = self._shift[cell[valid]].T.astype(np.float64, order='C')  # (2, k)
        offset = np.stack((x[valid] - width / 2, y[valid] - height / 2))
        # Least squares with weights that let go of what does not fit (Cauchy), from the median.
        motion[:2] = np.median(shift, 1)
        for _ in range(4):
            residual = shift - motion[:2, None] - motion[2] * offset
            weight = 1.0 / (1.0 + (residual * residual).sum(0) / _SPREAD_PX**2)
            weight /= weight.sum()
            mean_shift, mean_offset = shift @ weight, offset @ weight
            centred = offset - mean_offset[:, None]
            leverage = centred * weight
            motion[2] = np.vdot(leverage, shift) / np.vdot(leverage, centred)
            motion[:2] = mean_shift - motion[2] * mean_offset
        if np.abs(motion[:2]).max() + abs(motion[2]) * width / 2 < _STILL_PX:
            motion[:] = 0.0
        return motion

    def camera_velocity(self, centre: NDArray[np.float64]) -> NDArray[np.float64]:
        """Velocity of the background at points of the original image.

        Args:
            centre: (2, n) pixels.

        Returns:
            (2, n) pixels a second.
        """
        shift_x, shift_y, growth = self.camera
        if not (shift_x or shift_y or growth):
            return np.zeros_like(centre)
        height, width = self._previous.shape
        middle = np.array([[width], [height]]) / (2 * self._scale)
        shift = np.array([[shift_x], [shift_y]]) / self._scale
        return (shift + growth * (centre - middle)) / self.interval_s

    @property
    def camera_growth(self) -> float:
        """Relative growth of the background a second: above 0 when the camera moves forward."""
        return float(self.camera[2]) / self.interval_s

    def outside_motion(self, boxes_xyxy: NDArray[np.floating]) -> float:
        """Part of the picture that changes outside boxes; 0 while the camera moves.

        Args:
            boxes_xyxy: (n, 4) pixels of the original image.
        """
        if self.camera.any():
            return 0.0
        difference = cv2.absdiff(self._previous, self._current)
        changed = cv2.blur(difference, (5, 5)) > _CHANGED_LEVEL
        size = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        grown = np.concatenate((boxes_xyxy[:, :2] - 0.2 * size, boxes_xyxy[:, 2:] + 0.2 * size), 1)
        limit = changed.shape[::-1] * 2
        for left, top, right, bottom in np.clip(grown * self._scale, 0, limit).astype(int):
            changed[top:bottom, left:right] = False
        return float(np.count_nonzero(changed)) / changed.size

    def of_boxes(
        self,
        boxes_xyxy: NDArray[np.float64],
        expected_velocity: NDArray[np.float64],
        expected_var: NDArray[np.float64],
    ) -> BoxMotion:
        """Motion of what stands in boxes on the first of the two images.

        The points of a box fall on the object, on the background beside it and on whatever is in
        front. Points in boxes that are nearer (their lower edge is lower) are left out. Of the
        rest, those near the expected velocity count most, as far as that is known; then those
        that move against the background.

        Args:
            boxes_xyxy: (n, 4) pixels of the original image.
            expected_velocity: (2, n) relative to the background, pixels a second.
            expected_var: (n,) its variance.
        """
        boxes = boxes_xyxy * self._scale
        size = boxes[:, 2:] - boxes[:, :2]
        x = boxes[:, 0, None] + size[:, 0, None] * _POINT_X
        y = boxes[:, 1, None] + size[:, 1, None] * _POINT_Y
        cell, usable = self._cells(x, y)
        usable &= ~_hidden(boxes, x, y)
        if self._background is None:
            # All points of a frame at once: each call prepares both images anew.
            background_cell, inside = self._cells(*_background_points(*self._previous.shape))
            self._compute(cell[usable], background_cell[inside])
        else:
            self._compute(cell[usable])
        valid = usable & self._valid[cell]
        shift = self._shift[cell]

        to_shift = self._scale * self.interval_s
        centre = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]).T * 0.5
        background = self.camera_velocity(centre) * to_shift
        shift_x = shift[..., 0] - background[0][:, None]
        shift_y = shift[..., 1] - background[1][:, None]
        goal_x, goal_y = expected_velocity * to_shift
        goal_var = expected_var * to_shift**2

        # A still object among still points is as good as a moving one; but where a fair part of
        # the points moves, the still ones are background.
        moving = valid & (shift_x**2 + shift_y**2 > _MOVING_PX**2)
        moving_part = moving.sum(1) / np.maximum(valid.sum(1), 1)
        figure = np.where((moving_part > 0.25)[:, None], valid * (0.1 + 0.9 * moving), valid)

        prior_var = goal_var + _SPREAD_PX**2
        distance = (shift_x - goal_x[:, None]) ** 2 + (shift_y - goal_y[:, None]) ** 2
        near_prior = figure * np.exp(distance / (-2.0 * prior_var[:, None]))
        settled_x, settled_y, agree_count = _settle(
            shift_x, shift_y, figure, np.stack((near_prior, figure))
        )
        goal_x, other_x = settled_x
        goal_y, other_y = settled_y
        agreed, other_agreed = agree_count
        # What moves differently from what was expected: somebody turned round, or stepped in
        # front. It must be much more of the box to be believed.
        turned = (other_agreed > 1.5 * agreed) & (other_agreed > 0.3 * POINTS_PER_BOX)
        goal_x = np.where(turned, other_x, goal_x)
        goal_y = np.where(turned, other_y, goal_y)
        distance = (shift_x - goal_x[:, None]) ** 2 + (shift_y - goal_y[:, None]) ** 2
        agree = valid & (distance < (3 * _SPREAD_PX) ** 2)
        count = agree.sum(1)
        found = count >= _MIN_POINTS
        scatter = (np.where(agree, distance, 0.0).sum(1) / np.maximum(count, 1)) * 0.5
        # Neighbouring points share pixels: they are worth a fraction of their number.
        shift_var = (scatter + 0.05**2) / np.maximum(count / 4.0, 1.0)
        return BoxMotion(
            np.stack((goal_x, goal_y)) / to_shift,
            shift_var / to_shift**2,
            np.where(found, count / POINTS_PER_BOX, 0.0),
        )


@lru_cache(maxsize=4)
def _background_points(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of the points, all over the image, that tell the camera's motion."""
    columns, rows = _BACKGROUND
    x = (np.arange(columns) + 0.5) * (width / columns)
    y = (np.arange(rows) + 0.5) * (height / rows)
    return np.tile(x, rows), np.repeat(y, columns)


def _settle(
    shift_x: NDArray[np.float64],
    shift_y: NDArray[np.float64],
    figure: NDArray[np.float64],
    weight: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Robust means (k, n) of shifts (n, p), from k first weightings (k, n, p) on.

    Returns:
        x and y of each, and how much of `figure` (n, p) agrees with it.
    """
    for _ in range(4):
        total = weight.sum(2) + 1e-9
        goal_x = (weight * shift_x).sum(2) / total
        goal_y = (weight * shift_y).sum(2) / total
        distance = (shift_x - goal_x[:, :, None]) ** 2 + (shift_y - goal_y[:, :, None]) ** 2
        weight = figure / (1.0 + distance / _SPREAD_PX**2)
    return goal_x, goal_y, (figure * (distance < (3 * _SPREAD_PX) ** 2)).sum(2)


def _hidden(
    boxes: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which points (n, p) of boxes (n, 4) lie in a box that is nearer, or beside it.

    A box of which much is hidden has no points: what is left is seldom enough of the figure.
    """
    left, top, right, bottom = boxes.T
    margin = _MARGIN * (right - left)
    left, right, top = left - margin, right + margin, top - margin
    in_front = (
        (boxes[:, 0, None] < right)
        & (left < boxes[:, 2, None])
        & (boxes[:, 1, None] < bottom)
        & (top < bottom[:, None])
        & (bottom[:, None] < bottom)
    )
    hidden = np.zeros(x.shape, bool)
    behind, front = np.nonzero(in_front)
    if len(behind):
        px, py = x[behind], y[behind]
        inside = (
            (px > left[front, None])
            & (px < right[front, None])
            & (py > top[front, None])
            & (py < bottom[front, None])
        )
        np.logical_or.at(hidden, behind, inside)
        hidden[hidden.mean(1) > _MAX_HIDDEN] = True
    return hidden
