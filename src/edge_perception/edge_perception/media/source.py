"""What every source of frames has in common."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edge_perception.media.camera_info import CameraInfo
from edge_perception.media.errors import MediaError
from edge_perception.types import Frame

if TYPE_CHECKING:
    from typing_extensions import Self

IMAGE_SUFFIXES = frozenset(
    {'.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.pgm', '.tif', '.tiff', '.webp'}
)
"""File names that end so are still images; everything else is tried as a video."""

BAG_SUFFIXES = frozenset({'.mcap', '.db3'})
"""File names of rosbag2's storages."""

NANOSECONDS = 1_000_000_000


class Source(ABC):
    """Frames in order of time: an iterator and a context manager.

    Attributes:
        description: one line for a user, what is read and how.
        rate_hz: nominal frames a second; None when unknown.
        is_live: frames come at their own pace and are lost when nobody takes them. A source that
            is not live waits for its reader, who paces it by the stamps.
        camera_info: the calibration that the source carries; None when it carries none.
        round: how often the source has begun anew because of `loop`; 0 in the first round. It
            speaks of the frame delivered last.
        skipped: images of this round that could not be decoded and were left out.
        dropped: frames of a live source that newer ones overtook before they were taken.
    """

    description: str = ''
    rate_hz: float | None = None
    is_live: bool = False
    camera_info: CameraInfo | None = None
    round: int = 0
    skipped: int = 0
    dropped: int = 0

    @property
    def frame_count(self) -> int | None:
        """Frames in one round; None for a live source and where it cannot be known."""
        return None

    def __iter__(self) -> Self:
        return self

    @abstractmethod
    def __next__(self) -> Frame:
        """The next frame.

        Raises:
            StopIteration: the source has ended, or was closed.
            MediaError: the source is broken or, for a live one, has stalled.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the file or the device; safe to call twice and from another thread."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class RecordedSource(Source):
    """A source that can be read again from its start: loop and rate override live here.

    Stamps grow throughout: each further round is shifted by the duration of one round. With
    `rate_hz` given, frame i of the source is stamped `first + i / rate_hz`, whatever the
    recording says.
    """

    def __init__(self, *, loop: bool, rate_hz: float | None) -> None:
        if rate_hz is not None and not rate_hz > 0:
            raise MediaError(f'rate_hz must be above 0, got {rate_hz:g}')
        self._loop = loop
        self._fixed_rate_hz = rate_hz
        self._frames: Iterator[Frame] | None = None
        self._pending: Frame | None = None
        self._index = 0
        self._first_ns = 0
        self._shift_ns = 0
        self._last_ns = 0
        self._period_ns = 0
        self._closed = False
        # Reading and closing may happen in two threads; the decoders do not survive that.
        self._lock = threading.RLock()

    @abstractmethod
    def _release(self) -> None:
        """Close the files; called once, never while a frame is being read."""

    @abstractmethod
    def _read_round(self) -> Iterator[Frame]:
        """All frames from the start, with the stamps of the recording."""

    def _begin(self) -> None:
        """Read the first frame, so that a source without any is an error when it is opened.

        Raises:
            MediaError: there is no frame.
        """
        try:
            self._frames = self._read_round()
            self._pending = next(self._frames, None)
            if self._pending is None:
                raise MediaError(f'{self.description}: not one frame could be decoded')
        except MediaError:
            self.close()
            raise
        self._first_ns = self._pending.stamp_ns
        if self._fixed_rate_hz is not None:
            self.rate_hz = self._fixed_rate_hz
        self._period_ns = round(NANOSECONDS / self.rate_hz) if self.rate_hz else 0

    def __next__(self) -> Frame:
        with self._lock:
            frame = self._advance()
            if frame is None:
                self.close()
                raise StopIteration
            return frame

    def _advance(self) -> Frame | None:
        """The next frame with its final stamp; None after the last."""
        if self._closed or self._frames is None:
            return None
        frame, self._pending = self._pending, None
        if frame is None:
            frame = next(self._frames, None)
        if frame is None and self._loop:
            self._frames = self._read_round()
            frame = next(self._frames, None)
            if frame is None:
                raise MediaError(f'{self.description}: cannot be read again from its start')
            self.round += 1
            # The last frame is shown for as long as the one before it.
            self._shift_ns = self._last_ns + self._period_ns - self._first_ns
        if frame is None:
            return None
        if self._fixed_rate_hz is not None:
            stamp_ns = self._first_ns + round(self._index * NANOSECONDS / self._fixed_rate_hz)
        else:
            stamp_ns = frame.stamp_ns + self._shift_ns
        if self._index and stamp_ns > self._last_ns:
            self._period_ns = stamp_ns - self._last_ns
        self._index += 1
        self._last_ns = stamp_ns
        return Frame(frame.image, stamp_ns, frame.frame_id)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                # It refers to this source, and would keep decoder and pictures until Python looks
                # for such circles.
                self._frames = None
                self._release()
