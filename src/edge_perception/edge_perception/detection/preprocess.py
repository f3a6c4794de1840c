"""Frames into the network's input: letterbox, channel order, scale, into memory that is kept.

A frame is resized with its aspect ratio and centred on a grey (114) canvas. The canvas is the
model's fixed size, or the smallest multiple of its stride where the model takes any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_perception.detection.errors import InputSizeError

PAD_VALUE = 114


@dataclass(frozen=True)
class LetterboxGeometry:
    """Where a frame lies on the network's canvas; all sizes in pixels.

    Attributes:
        frame_width: width of the original image.
        frame_height: height of the original image.
        width: width of the resized image on the canvas.
        height: height of the resized image on the canvas.
        left: first canvas column of the resized image.
        top: first canvas row of the resized image.
    """

    frame_width: int
    frame_height: int
    width: int
    height: int
    left: int
    top: int

    @classmethod
    def fit(
        cls, frame_hw: tuple[int, int], canvas_hw: tuple[int, int], limit_hw: tuple[int, int]
    ) -> LetterboxGeometry:
        """Fit a frame into `limit_hw`, aspect ratio kept, and centre it on `canvas_hw`."""
        height, width = resized_hw(frame_hw, limit_hw)
        return cls(
            frame_width=frame_hw[1],
            frame_height=frame_hw[0],
            width=width,
            height=height,
            left=(canvas_hw[1] - width) // 2,
            top=(canvas_hw[0] - height) // 2,
        )

    def boxes_to_frame(self, boxes_xyxy: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Boxes (n, 4) on the canvas to pixels of the original image, clipped to it."""
        scale_x = self.frame_width / self.width
        scale_y = self.frame_height / self.height
        boxes = boxes_xyxy - np.array([self.left, self.top, self.left, self.top], np.float32)
        boxes *= np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
        limits = [self.frame_width, self.frame_height, self.frame_width, self.frame_height]
        return np.clip(boxes, 0, limits, dtype=np.float32)

    def boxes_to_canvas(self, boxes_xyxy: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Boxes (n, 4) in pixels of the original image to the canvas: the inverse mapping."""
        scale_x = self.width / self.frame_width
        scale_y = self.height / self.frame_height
        boxes = boxes_xyxy * np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
        return boxes + np.array([self.left, self.top, self.left, self.top], np.float32)


def resized_hw(frame_hw: tuple[int, int], limit_hw: tuple[int, int]) -> tuple[int, int]:
    """Largest (height, width) of the frame's aspect ratio within `limit_hw`."""
    ratio = min(limit_hw[0] / frame_hw[0], limit_hw[1] / frame_hw[1])
    return max(1, round(frame_hw[0] * ratio)), max(1, round(frame_hw[1] * ratio))


class Preprocessor:
    """Letterboxes frames into one blob that is kept from call to call.

    Args:
        image_hw: the fixed canvas (height, width), or for a model of dynamic size the limits that
            a frame is fitted into.
        stride: canvas sizes are multiples of it.
        rectangular: shrink the canvas to the fitted frame, rounded up to the stride. Only for
            models of dynamic height and width.
        scale: factor on the pixel values, 1/255 for [0, 1].
        rgb: whether the network wants RGB (else BGR, as the frames are).
        dtype: element type of the blob; uint8 takes no scale.
        channels_last: (n, H, W, 3) blobs instead of (n, 3, H, W).
        smallest_hw: a rectangular canvas shrinks to no less.

    Raises:
        InputSizeError: a size is no positive multiple of the stride.
    """

    def __init__(
        self,
        image_hw: tuple[int, int],
        *,
        stride: int = 32,
        rectangular: bool = False,
        scale: float = 1 / 255,
        rgb: bool = True,
        dtype: Any = np.float32,
        channels_last: bool = False,
        smallest_hw: tuple[int, int] = (0, 0),
    ) -> None:
        if any(size <= 0 or size % stride for size in image_hw):
            height, width = (max(_round_up(size, stride), stride) for size in image_hw)
            raise InputSizeError(
                f'input size {image_hw[0]}x{image_hw[1]} (height x width) is no multiple of the '
                f'stride {stride}: {height}x{width} is the next'
            )
        self.image_hw = image_hw
        self.stride = stride
        self.rectangular = rectangular
        self.scale = scale
        self.rgb = rgb
        self.dtype = np.dtype(dtype)
        self.channels_last = channels_last
        self.smallest_hw = smallest_hw
        self.last_canvas_hw = image_hw
        self._blob = np.empty((0, 3, 0, 0), self.dtype)
        self._layout: tuple[LetterboxGeometry, ...] = ()
        self._resized: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def canvas_hw(self, frames_hw: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Height and width of the blob for frames of these sizes."""
        if not self.rectangular:
            return self.image_hw
        sizes = [resized_hw(frame_hw, self.image_hw) for frame_hw in frames_hw]
        return (
            _round_up(max(self.smallest_hw[0], *(size[0] for size in sizes)), self.stride),
            _round_up(max(self.smallest_hw[1], *(size[1] for size in sizes)), self.stride),
        )

    def __call__(
        self, images: Sequence[NDArray[np.uint8]], *, batch: int | None = None
    ) -> tuple[NDArray[Any], tuple[LetterboxGeometry, ...]]:
        """Letterbox a batch.

        Args:
            images: n frames, each (h, w, 3) uint8 BGR, of any sizes.
            batch: rows of the blob, at least n, for a model of fixed batch; the rows after the
                n-th keep what they held.

        Returns:
            The blob (batch, 3, H, W), or (batch, H, W, 3) with `channels_last`, valid until the
            next call, and where each frame lies on it.
        """
        frames_hw = [(image.shape[0], image.shape[1]) for image in images]
        canvas_hw = self.canvas_hw(frames_hw)
        geometries = tuple(
            LetterboxGeometry.fit(frame_hw, canvas_hw, self.image_hw) for frame_hw in frames_hw
        )
        self.last_canvas_hw = canvas_hw
        rows = batch or len(images)
        shape = (rows, *canvas_hw, 3) if self.channels_last else (rows, 3, *canvas_hw)
        if shape != self._blob.shape or geometries != self._layout:
            # Only a change of sizes paints the grey border anew.
            if shape != self._blob.shape:
                self._blob = np.empty(shape, self.dtype)
            self._blob.fill(PAD_VALUE * self.scale)
            self._layout = geometries
            self._resized = {}
        # Where the channels come last this is a view of the same memory.
        blob = self._blob.transpose(0, 3, 1, 2) if self.channels_last else self._blob
        for image, geometry, planes in zip(images, geometries, blob, strict=False):
            self._fill(planes, image, geometry)
        return self._blob, geometries

    def _fill(
        self, planes: NDArray[Any], image: NDArray[np.uint8], geometry: LetterboxGeometry
    ) -> None:
        """Write one frame into its (3, H, W) planes, one colour at a time: no temporaries."""
        if image.strides[2] != 1 or image.strides[1] != 3 or image.strides[0] < 0:
            # A mirrored or channel-swapped view, which OpenCV cannot read in place.
            image = np.ascontiguousarray(image)
        size_hw = (geometry.height, geometry.width)
        if image.shape[:2] != size_hw:
            buffer = self._resized.get(size_hw)
            if buffer is None:
                buffer = self._resized[size_hw] = np.empty((*size_hw, 3), np.uint8)
            cv2.resize(image, size_hw[::-1], dst=buffer, interpolation=cv2.INTER_LINEAR)
            image = buffer
        rows = slice(geometry.top, geometry.top + geometry.height)
        columns = slice(geometry.left, geometry.left + geometry.width)
        for channel in range(3):
            source = image[:, :, 2 - channel if self.rgb else channel]
            target = planes[channel, rows, columns]
            if self.scale == 1:
                target[...] = source
            else:
                np.multiply(source, self.dtype.type(self.scale), out=target)


def _round_up(size: int, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple
