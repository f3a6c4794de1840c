"""Boxes, ids, class names and trails drawn into an image."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_perception.types import Tracks, TrackSource

# The golden angle spreads the hues of consecutive ids as far apart as possible.
_HUE_STEP = 0.618034
# Further outside the image OpenCV's 16-bit line arithmetic wraps around.
_FAR_PX = 8191
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def track_color(track_id: int) -> tuple[int, int, int]:
    """A bright BGR colour that stays with an id."""
    hue = int(track_id * _HUE_STEP * 180) % 180
    bgr = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return int(bgr[0]), int(bgr[1]), int(bgr[2])


class Trails:
    """Where the tracks have been in the last seconds: the middle of the lower edge of each box.

    Args:
        length_s: how far back.
    """

    def __init__(self, length_s: float = 3.0) -> None:
        self._length_ns = round(length_s * 1e9)
        self._points: dict[int, deque[tuple[int, int, int]]] = {}
        self._stamp_ns = 0

    def add(self, stamp_ns: int, tracks: Tracks) -> None:
        """Add the tracks of an image. A stamp that jumps back begins anew."""
        if stamp_ns < self._stamp_ns:
            self._points.clear()
        self._stamp_ns = stamp_ns
        feet = np.clip(tracks.xyxy, -_FAR_PX, _FAR_PX)
        x, y = (feet[:, 0] + feet[:, 2]) * 0.5, feet[:, 3]
        for track_id, foot_x, foot_y in zip(tracks.track_id.tolist(), x, y, strict=True):
            points = self._points.setdefault(track_id, deque())
            points.append((stamp_ns, int(foot_x), int(foot_y)))
        oldest_ns = stamp_ns - self._length_ns
        for track_id, points in list(self._points.items()):
            while points and points[0][0] < oldest_ns:
                points.popleft()
            if not points:
                del self._points[track_id]

    def of(self, track_id: int) -> NDArray[np.int32]:
        """(n, 2) pixels, oldest first; none for an unknown track."""
        points = self._points.get(track_id, ())
        return np.array([point[1:] for point in points], np.int32).reshape(-1, 2)


def draw_tracks(
    image: NDArray[np.uint8],
    tracks: Tracks,
    names: Mapping[int, str],
    trails: Trails | None = None,
) -> NDArray[np.uint8]:
    """Draw the box, id and class of every track; dashed is what the newest detections missed.

    Args:
        image: (h, w, 3) uint8 BGR, drawn into.
        tracks: the tracks of this image.
        names: class id -> class name.
        trails: where they have been; None draws no trails.

    Returns:
        `image`.
    """
    scale = max(image.shape[0] / 1080, 0.45)
    thickness = max(round(2 * scale), 1)
    for box, track_id, class_id, source in zip(
        tracks.xyxy.tolist(),
        tracks.track_id.tolist(),
        tracks.class_id.tolist(),
        tracks.source.tolist(),
        strict=True,
    ):
        left, top, right, bottom = (int(np.clip(value, -_FAR_PX, _FAR_PX)) for value in box)
        color = track_color(track_id)
        if trails is not None:
            cv2.polylines(image, [trails.of(track_id)], False, color, thickness, cv2.LINE_AA)
        if source == TrackSource.DETECTED:
            cv2.rectangle(image, (left, top), (right, bottom), color, thickness, cv2.LINE_AA)
        else:
            _dashed_rectangle(image, left, top, right, bottom, color, thickness)
        text = f'{names.get(class_id, class_id)} {track_id}'
        (width, height), baseline = cv2.getTextSize(text, _FONT, scale, 1)
        base = top - 2 if top - height - baseline - 2 >= 0 else top + height + baseline
        cv2.rectangle(
            image, (left, base - height - 2), (left + width, base + baseline), color, cv2.FILLED
        )
        cv2.putText(image, text, (left, base), _FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return image


def _dashed_rectangle(
    image: NDArray[np.uint8],
    left: int,
    top: int,
    right: int,
    bottom: int,
    color: tuple[int, int, int],
    thickness: int,
) -> None:
    dash = 4 * thickness + 2
    segments = [
        np.array([[x, y], [min(x + dash, right), y]], np.int32)
        for y in (top, bottom)
        for x in range(left, right, 2 * dash)
    ]
    segments += [
        np.array([[x, y], [x, min(y + dash, bottom)]], np.int32)
        for x in (left, right)
        for y in range(top, bottom, 2 * dash)
    ]
    cv2.polylines(image, segments, False, color, thickness, cv2.LINE_AA)
