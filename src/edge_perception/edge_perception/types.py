"""The arrays that cross every border of the package: frames, detections, tracks.

Everything else in the package imports this module, and this module imports nothing but NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self


class EdgePerceptionError(Exception):
    """Base of every error that this package raises on purpose; its text is one line for a user."""


class ShapeError(EdgePerceptionError, ValueError):
    """An array at a border has another shape or dtype than its field declares."""


class TrackSource(IntEnum):
    """Whether the newest detections that the tracker was given had a track.

    DETECTED: they had it; its box is theirs, carried on to this frame where they are of an
    earlier one. PREDICTED: they missed it; its box is where the object should be by now.
    """

    DETECTED = 0
    PREDICTED = 1


def _array(dtype: Any, *shape: int | None) -> Any:
    """A dataclass field that holds an array of `dtype`; None in `shape` is n, the object count."""
    return field(metadata={'dtype': np.dtype(dtype), 'shape': shape})


@cache
def _declared(struct: type) -> tuple[tuple[str, np.dtype[Any], tuple[int | None, ...]], ...]:
    """Name, dtype and shape of each field of a class of arrays; looked up once, not per object."""
    return tuple(
        (item.name, item.metadata['dtype'], item.metadata['shape']) for item in fields(struct)
    )


class _ArrayStruct:
    """Checks, selection and concatenation for a frozen dataclass of arrays of equal length."""

    def __post_init__(self) -> None:
        n = None
        for name, dtype, shape in _declared(type(self)):  # type: ignore[arg-type]
            value = getattr(self, name)
            if not isinstance(value, np.ndarray) or value.dtype != dtype:
                actual = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
                raise ShapeError(
                    f'{type(self).__name__}.{name}: expected dtype {dtype}, got {actual}'
                )
            if n is None and value.ndim:
                n = value.shape[0]
            expected = (n, *shape[1:])
            if value.shape != expected:
                raise ShapeError(
                    f'{type(self).__name__}.{name}: expected shape {expected}, got {value.shape}'
                )

    def __len__(self) -> int:
        return len(self.score)  # type: ignore[attr-defined]

    def __getitem__(self, index: slice | NDArray[Any] | Sequence[int]) -> Self:
        """Select objects by slice, index array or boolean mask."""
        if isinstance(index, (list, tuple)):
            index = np.asarray(index, dtype=np.intp)
        return type(self)(**{item.name: getattr(self, item.name)[index] for item in fields(self)})  # type: ignore[arg-type]

    @classmethod
    def empty(cls) -> Self:
        """No objects: every array has length 0."""
        return cls(
            **{
                item.name: np.empty(
                    tuple(0 if size is None else size for size in item.metadata['shape']),
                    item.metadata['dtype'],
                )
                for item in fields(cls)  # type: ignore[arg-type]
            }
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The objects of all `parts`, in order."""
        if not parts:
            return cls.empty()
        return cls(
            **{
                item.name: np.concatenate([getattr(part, item.name) for part in parts])
                for item in fields(cls)  # type: ignore[arg-type]
            }
        )


@dataclass(frozen=True, eq=False)
class Detections(_ArrayStruct):
    """n objects that a detector found on one frame.

    Attributes:
        xyxy: (n, 4) float32, left, top, right, bottom in pixels of the original image.
        score: (n,) float32 in [0, 1].
        class_id: (n,) int32, index into the model's class names.

    Raises:
        ShapeError: a field has another dtype or shape.
    """

    xyxy: NDArray[np.float32] = _array(np.float32, None, 4)
    score: NDArray[np.float32] = _array(np.float32, None)
    class_id: NDArray[np.int32] = _array(np.int32, None)


@dataclass(frozen=True, eq=False)
class Tracks(_ArrayStruct):
    """n tracked objects on one frame.

    Attributes:
        xyxy: (n, 4) float32, left, top, right, bottom in pixels of the original image.
        score: (n,) float32 in [0, 1], of the last detection that the track was given.
        class_id: (n,) int32, index into the model's class names.
        track_id: (n,) int64, unique within a tracker object, from 1.
        age_s: (n,) float32, seconds since the track's first detection.
        time_since_detection_s: (n,) float32, seconds since its last detection, 0 on that frame.
        source: (n,) uint8 of TrackSource.

    Raises:
        ShapeError: a field has another dtype or shape.
    """

    xyxy: NDArray[np.float32] = _array(np.float32, None, 4)
    score: NDArray[np.float32] = _array(np.float32, None)
    class_id: NDArray[np.int32] = _array(np.int32, None)
    track_id: NDArray[np.int64] = _array(np.int64, None)
    age_s: NDArray[np.float32] = _array(np.float32, None)
    time_since_detection_s: NDArray[np.float32] = _array(np.float32, None)
    source: NDArray[np.uint8] = _array(np.uint8, None)


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a stream.

    Attributes:
        image: (height, width, 3) uint8 BGR. Shared between readers: nobody writes into it.
        stamp_ns: acquisition time in nanoseconds.
        frame_id: name of the camera's coordinate frame (REP-105), may be empty.

    Raises:
        ShapeError: the image has another dtype or shape.
    """

    image: NDArray[np.uint8]
    stamp_ns: int = 0
    frame_id: str = ''

    def __post_init__(self) -> None:
        image = self.image
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ShapeError(
                f'Frame.image: expected (height, width, 3) uint8, got {image.shape} {image.dtype}'
            )
