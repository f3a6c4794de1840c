"""Video files, read and written through PyAV (FFmpeg): exact time stamps, clear errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from edge_perception.media.atomic import temporary_beside
from edge_perception.media.errors import MediaError, MediaTimeoutError, hide_password
from edge_perception.media.source import NANOSECONDS, RecordedSource
from edge_perception.types import Frame

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

# By the counter-clockwise degrees of the container's display matrix, as phones write it.
_ROTATIONS = {
    90: cv2.ROTATE_90_COUNTERCLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_CLOCKWISE,
}


TIME_BASE = Fraction(1, 90_000)
"""Unit of time in written files: MPEG's, a multiple of the usual rates."""


class BgrConverter:
    """Decoded frames of one stream to BGR arrays; keeps the conversion tables between frames."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """The picture as a viewer shows it: (h, w, 3) uint8 BGR, rotated upright, contiguous."""
        plane = self._reformatter.reformat(frame, format='bgr24').planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        image = rows[: plane.height, : 3 * plane.width].reshape(plane.height, plane.width, 3)
        rotation = _ROTATIONS.get(round(frame.rotation) % 360)
        if rotation is not None:
            return np.asarray(cv2.rotate(image, rotation), np.uint8)
        return np.ascontiguousarray(image)


def open_container(
    uri: str, *, options: dict[str, str] | None = None, timeout_s: float | None = None
) -> av.container.InputContainer:
    """Open a file or URL that has a video stream.

    Raises:
        MediaError: it cannot be opened, is no video, or holds no video stream.
        MediaTimeoutError: the server does not answer in time.
    """
    name = hide_password(uri)
    try:
        container = av.open(uri, options=options or {}, timeout=timeout_s)
    except (av.ExitError, TimeoutError) as error:
        raise MediaTimeoutError(f'{name}: no answer within {timeout_s:g} s') from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f'{name}: cannot be opened as a video: {reason(error)}') from error
    if not container.streams.video:
        kinds = ', '.join(stream.type for stream in container.streams) or 'nothing'
        container.close()
        raise MediaError(f'{name}: has no video stream (found: {kinds})')
    return container


def reason(error: Exception) -> str:
    """What FFmpeg says, without the number and the file name that PyAV adds."""
    text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    return text[0].lower() + text[1:]


def _mark(packet: av.Packet | None) -> tuple[int | None, ...]:
    """What tells one packet of a stream from another; its times come first."""
    return () if packet is None else (packet.pts, packet.dts, packet.pos, packet.size)


class VideoFileSource(RecordedSource):
    """A video file, or one behind a URL that has an end.

    Stamps are the container's presentation times counted from the first frame, so files of
    variable rate keep their timing. Damaged packets are left out and a file that ends early
    ends early; both are logged once.

    Args:
        path: the file, or the URL as text.
        loop: begin again at the end.
        rate_hz: stamp frame i with i / rate_hz instead of the file's own time.
        frame_id: of every frame.
        timeout_s: for URLs, how long one read may take.

    Raises:
        MediaError: no video, or not one frame of it can be decoded.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        loop: bool = False,
        rate_hz: float | None = None,
        frame_id: str = '',
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(loop=loop, rate_hz=rate_hz)
        self._uri = str(path)
        self._frame_id = frame_id
        self._timeout_s = timeout_s
        self._container = open_container(self._uri, timeout_s=timeout_s)
        stream = self._container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        self.rate_hz = float(rate) if rate else None
        context = stream.codec_context
        self.description = (
            f'{hide_password(self._uri)} ({context.name} {context.width}x{context.height}'
            f'{f", {self.rate_hz:g} Hz" if self.rate_hz else ""})'
        )
        self._reported = False
        self._first_packet: tuple[int | None, ...] = ()
        self._convert = BgrConverter()
        self._stated = self._stated_frames()
        self._begin()

    def _stated_frames(self) -> int | None:
        """Frames in the file by its index; None where the format has none that can be trusted."""
        # AVI counts the empty chunks of dropped frames too, Matroska and streams do not count.
        stream = self._container.streams.video[0]
        return stream.frames or None if 'mp4' in self._container.format.name else None

    @cached_property
    def _counted(self) -> int:
        container = open_container(self._uri, timeout_s=self._timeout_s)
        with container:
            return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))

    @property
    def frame_count(self) -> int:
        """Frames in the file; where it does not state them, the first call counts its packets."""
        return self._stated or self._counted

    def _packets(self) -> Iterator[av.Packet]:
        """All packets from the start of the file."""
        if not self._first_packet:
            first, packets = self._demux()
            self._first_packet = _mark(first)
        else:
            # Back, rather than open it anew: a new decoder has new threads, which take the
            # memory of its pictures from other arenas of malloc than those before them. The
            # arenas keep it: 10 to 20 MB a round until each has its share.
            first, packets = self._seek_start()
            if _mark(first) != self._first_packet:  # not every format finds its start again
                self._container.close()
                self._container = open_container(self._uri, timeout_s=self._timeout_s)
                first, packets = self._demux()
        if first is not None:
            yield first
            yield from packets

    def _demux(self) -> tuple[av.Packet | None, Iterator[av.Packet]]:
        """The next packet of the video and those after it."""
        stream = self._container.streams.video[0]
        if not stream.codec_context.is_open:
            stream.thread_type = 'AUTO'
        packets = self._container.demux(stream)
        return next(packets, None), packets

    def _seek_start(self) -> tuple[av.Packet | None, Iterator[av.Packet]]:
        """The same after a jump to the start; no packet where that fails."""
        times = [time for time in self._first_packet[:2] if time is not None]
        try:
            self._container.seek(min(times), stream=self._container.streams.video[0])
            return self._demux()
        except (av.FFmpegError, OSError, ValueError):
            return None, iter(())

    def _read_round(self) -> Iterator[Frame]:
        stream = self._container.streams.video[0]
        time_base = stream.time_base or Fraction(1, NANOSECONDS)
        period_ns = round(NANOSECONDS / self.rate_hz) if self.rate_hz else 1
        first_pts: int | None = None
        stamp_ns = -period_ns
        self.skipped = 0
        count = 0
        stopped_by = ''
        packets = self._packets()
        while not self._closed:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError) as error:
                stopped_by = reason(error)
                break
            if packet is None:
                break
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                self.skipped += 1
                continue
            for picture in decoded:
                previous_ns = stamp_ns
                if picture.pts is None:
                    stamp_ns = previous_ns + period_ns
                else:
                    if first_pts is None:
                        first_pts = picture.pts
                    stamp_ns = round((picture.pts - first_pts) * time_base * NANOSECONDS)
                if count and stamp_ns <= previous_ns:
                    # Broken recorders repeat a time; the order of frames is still right.
                    stamp_ns = previous_ns + period_ns
                count += 1
                yield Frame(self._convert(picture), stamp_ns, self._frame_id)
        is_short = self._stated is not None and count < self._stated
        if count and not self._reported and (self.skipped or stopped_by or is_short):
            self._reported = True
            logger.warning(
                '%s: %d of %s frames could be read (%d damaged packets%s)',
                hide_password(self._uri),
                count,
                self._stated or 'its',
                self.skipped,
                f'; stopped by: {stopped_by}' if stopped_by else '',
            )

    def _release(self) -> None:
        self._container.close()


class VideoWriter:
    """Writes an H.264 file (yuv420p, BT.601) that browsers and players show; whole or absent.

    The file appears when the writer is closed. A context manager: leaving it by an exception
    drops what was written.

    Args:
        path: the file, .mp4 or .mkv; replaced when it exists.
        rate_hz: frames a second of frames without a stamp.

    Raises:
        MediaError: the folder cannot be written, the suffix is no container for H.264, or the
            rate is not above 0.
    """

    def __init__(self, path: str | Path, rate_hz: float) -> None:
        if not rate_hz > 0:
            raise MediaError(f'{path}: rate_hz must be above 0, got {rate_hz:g}')
        self._path = Path(path)
        self._rate = Fraction(rate_hz).limit_denominator(1001)
        self._temporary = temporary_beside(self._path)
        self._size: tuple[int, int] | None = None
        self._first_stamp_ns: int | None = None
        self._pts = -1
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._container: av.container.OutputContainer | None = av.open(
                str(self._temporary), 'w', options={'movflags': '+faststart'}
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            self._temporary.unlink(missing_ok=True)
            raise MediaError(f'{path}: cannot be written: {reason(error)}') from error

    def _open_stream(self, width: int, height: int) -> None:
        assert self._container is not None
        stream = self._container.add_stream('libx264', rate=self._rate)
        assert isinstance(stream, av.VideoStream)
        # H.264 halves the colour planes: odd sizes get one more row or column.
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = 'yuv420p'
        stream.options = {'crf': '23', 'preset': 'veryfast'}
        context = stream.codec_context
        context.time_base = TIME_BASE
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.SMPTE170M
        self._stream = stream

    def write(self, image: NDArray[np.uint8], stamp_ns: int | None = None) -> None:
        """Add one frame.

        Args:
            image: (h, w, 3) uint8 BGR, of the size of the first one.
            stamp_ns: when it is shown, relative to the first one's; without it, one period after
                the frame before. Give it for all frames or for none.

        Raises:
            MediaError: the writer is closed, the size has changed, or the disk is full.
        """
        if self._container is None:
            raise MediaError(f'{self._path}: the video is closed')
        height, width = image.shape[:2]
        try:
            if self._size is None:
                self._open_stream(width, height)
                self._size = (width, height)
            elif self._size != (width, height):
                raise MediaError(
                    f'{self._path}: began with {self._size[0]} x {self._size[1]} pixels, '
                    f'this frame has {width} x {height}'
                )
            if width % 2 or height % 2:
                image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge')
            # OpenCV rounds; FFmpeg's quick conversion tints gray.
            planes = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420)
            picture = av.VideoFrame.from_ndarray(np.asarray(planes, np.uint8), format='yuv420p')
            picture.pts = self._pts = self._next_pts(stamp_ns)
            picture.time_base = TIME_BASE
            self._container.mux(self._stream.encode(picture))
        except (av.FFmpegError, OSError) as error:
            raise MediaError(f'{self._path}: cannot be written: {reason(error)}') from error

    def _next_pts(self, stamp_ns: int | None) -> int:
        """Time of a frame in `TIME_BASE`, always after the one before."""
        if self._pts < 0:
            self._first_stamp_ns = stamp_ns
            return 0
        if stamp_ns is None or self._first_stamp_ns is None:
            return self._pts + round(1 / (self._rate * TIME_BASE))
        elapsed = Fraction(stamp_ns - self._first_stamp_ns, NANOSECONDS)
        return max(round(elapsed / TIME_BASE), self._pts + 1)

    def close(self) -> None:
        """Finish the file and put it in its place; nothing happens the second time.

        Raises:
            MediaError: no frame was written, or the disk is full.
        """
        container, self._container = self._container, None
        if container is None:
            return
        try:
            if self._size is None:
                raise MediaError(f'{self._path}: not one frame was written')
            container.mux(self._stream.encode(None))
            container.close()
            os.replace(self._temporary, self._path)
        except (av.FFmpegError, OSError) as error:
            raise MediaError(f'{self._path}: cannot be written: {reason(error)}') from error
        finally:
            self._drop(container)

    def abort(self) -> None:
        """Drop what was written; nothing happens after `close`."""
        container, self._container = self._container, None
        if container is not None:
            self._drop(container)

    def _drop(self, container: av.container.OutputContainer) -> None:
        with suppress(av.FFmpegError, OSError):  # of a full disk, whose error is known by now
            container.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()
