"""Detections, ground truth and tracks as text, in the format of the MOTChallenge.

One object a line, `frame,id,left,top,width,height,score,...`: frames count from 1, boxes are in
pixels, the id is -1 in files of detections. Further columns differ between the years (3D position
in 2015; class and visibility in the ground truth since 2016) and are kept as they are. Boxes are
taken as written, without the shift of one pixel that the 1-based origin of the challenge's own
tools would ask for, as all public trackers and TrackEval do.

Source: Leal-Taixe et al., "MOTChallenge 2015: Towards a Benchmark for Multi-Target Tracking",
arXiv:1504.01942; Milan et al., "MOT16", arXiv:1603.00831.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_perception.media.atomic import temporary_beside
from edge_perception.media.errors import MediaError, missing_path_error
from edge_perception.types import Detections, Tracks

if TYPE_CHECKING:
    from typing_extensions import Self

MIN_COLUMNS = 7
LARGEST_WHOLE = 2**53
"""Frames and ids up to here are whole numbers in a float too."""
LARGEST_VALUE = 1e9
"""Of everything else: no box is that large, and the difference of two must be a float32."""


@dataclass(frozen=True, eq=False)
class MotTable:
    """n lines of a file, in its order.

    Attributes:
        frame: (n,) int64, from 1.
        track_id: (n,) int64, -1 for detections.
        xywh: (n, 4) float64, left, top, width, height in pixels.
        score: (n,) float64; in ground truth 0 marks objects that do not count.
        extra: (n, k) float64, the columns after the score.
    """

    frame: NDArray[np.int64]
    track_id: NDArray[np.int64]
    xywh: NDArray[np.float64]
    score: NDArray[np.float64]
    extra: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def xyxy(self) -> NDArray[np.float64]:
        """(n, 4) left, top, right, bottom in pixels."""
        return np.concatenate([self.xywh[:, :2], self.xywh[:, :2] + self.xywh[:, 2:]], axis=1)

    def on_frame(self, frame: int) -> NDArray[np.intp]:
        """Indices of the lines of one frame (from 1), in order of the file."""
        return np.flatnonzero(self.frame == frame)

    def detections(self, frame: int, class_id: int = 0) -> Detections:
        """The lines of one frame (from 1) as detections of one class, scores cut to [0, 1]."""
        rows = self.on_frame(frame)
        return Detections(
            xyxy=self.xyxy[rows].astype(np.float32),
            score=np.clip(self.score[rows], 0, 1).astype(np.float32),
            class_id=np.full(len(rows), class_id, np.int32),
        )


def read_mot(path: str | Path) -> MotTable:
    """Read a det.txt, gt.txt or file of tracks.

    Args:
        path: the file; an empty one is an empty table.

    Raises:
        MediaError: naming file and line of the first thing that is wrong: too few or a varying
            number of columns, no number, a frame below 1, a fractional frame or id, a negative
            size, or an id twice on a frame.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except FileNotFoundError as error:
        raise missing_path_error(path) from error
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f'{path}: cannot be read as text: {error}') from error
    rows: list[list[float]] = []
    seen: set[tuple[float, float]] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parse(line, f'{path}:{number}')
        if rows and len(row) != len(rows[0]):
            raise MediaError(
                f'{path}:{number}: {len(row)} columns where the lines before have {len(rows[0])}'
            )
        key = (row[0], row[1])
        if row[1] >= 0 and key in seen:
            raise MediaError(f'{path}:{number}: id {row[1]:.0f} is twice on frame {row[0]:.0f}')
        seen.add(key)
        rows.append(row)
    values = np.array(rows, np.float64).reshape(len(rows), -1 if rows else MIN_COLUMNS)
    return MotTable(
        frame=values[:, 0].astype(np.int64),
        track_id=values[:, 1].astype(np.int64),
        xywh=values[:, 2:6].copy(),
        score=values[:, 6].copy(),
        extra=values[:, 7:].copy(),
    )


def _parse(line: str, where: str) -> list[float]:
    fields = line.split(',')
    if len(fields) < MIN_COLUMNS:
        raise MediaError(
            f'{where}: expected frame,id,left,top,width,height,score,... '
            f'({MIN_COLUMNS} columns or more, separated by commas), got {len(fields)}'
        )
    row = []
    for text in fields:
        try:
            value = float(text)
        except ValueError:
            raise MediaError(f'{where}: {text.strip()[:40]!r} is not a number') from None
        if not math.isfinite(value):
            raise MediaError(f'{where}: {text.strip()} is not a finite number')
        row.append(value)
    frame, track_id, _, _, width, height = row[:6]
    if not 1 <= frame <= LARGEST_WHOLE or frame != int(frame):
        raise MediaError(f'{where}: frame {frame:g} is not a whole number from 1')
    if abs(track_id) > LARGEST_WHOLE or track_id != int(track_id):
        raise MediaError(f'{where}: id {track_id:g} is not a whole number')
    if max(map(abs, row[2:])) > LARGEST_VALUE:
        raise MediaError(f'{where}: a value above {LARGEST_VALUE:g}')
    if width < 0 or height < 0:
        raise MediaError(f'{where}: a box of {width:g} x {height:g} pixels')
    return row


class MotWriter:
    """Writes tracks frame by frame; the file appears, whole, when it is closed.

    A context manager: leaving it by an exception drops what was written.

    Args:
        path: the file, replaced when it exists.

    Raises:
        MediaError: the folder cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._temporary = temporary_beside(self._path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open('w', encoding='ascii', newline='\n')
        except OSError as error:
            raise MediaError(f'{path}: cannot be written: {error.strerror}') from error

    def write(self, frame: int, tracks: Tracks) -> None:
        """Add the tracks of one frame.

        Args:
            frame: number of the frame, from 1.
            tracks: may be empty.

        Raises:
            MediaError: the disk is full, or the frame number is below 1.
        """
        self._write(frame, tracks.track_id, tracks)

    def write_detections(self, frame: int, detections: Detections) -> None:
        """Add the detections of one frame, with -1 as their id."""
        self._write(frame, np.full(len(detections), -1), detections)

    def _write(self, frame: int, ids: Iterable[int], boxes: Tracks | Detections) -> None:
        if frame < 1:
            raise MediaError(f'{self._path}: frames count from 1, got {frame}')
        try:
            for track_id, (left, top, right, bottom), score in zip(
                ids, boxes.xyxy.tolist(), boxes.score.tolist(), strict=True
            ):
                self._file.write(
                    f'{frame},{track_id},{left:.3f},{top:.3f},{right - left:.3f},'
                    f'{bottom - top:.3f},{score:.4f},-1,-1,-1\n'
                )
        except OSError as error:
            raise MediaError(f'{self._path}: cannot be written: {error.strerror}') from error

    def close(self) -> None:
        """Put the file in its place; nothing happens the second time."""
        if self._file.closed:
            return
        try:
            self._file.close()
            os.replace(self._temporary, self._path)
        except OSError as error:
            self._temporary.unlink(missing_ok=True)
            raise MediaError(f'{self._path}: cannot be written: {error.strerror}') from error

    def abort(self) -> None:
        """Drop what was written; nothing happens after `close`."""
        if not self._file.closed:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()


def write_tracks(path: str | Path, frames: Iterable[tuple[int, Tracks]]) -> None:
    """Write the tracks of a whole sequence.

    Args:
        path: the file, replaced when it exists.
        frames: pairs of frame number (from 1) and the tracks on it.

    Raises:
        MediaError: the file cannot be written, or a frame number is below 1.
    """
    with MotWriter(path) as writer:
        for frame, tracks in frames:
            writer.write(frame, tracks)
