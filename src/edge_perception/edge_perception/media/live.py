"""Cameras, network streams and GStreamer pipelines: sources that do not wait for their reader."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from edge_perception.media.errors import MediaError, MediaTimeoutError, hide_password
from edge_perception.media.source import Source
from edge_perception.media.video import BgrConverter, VideoFileSource, open_container, reason
from edge_perception.types import Frame

logger = logging.getLogger(__name__)

# One second of a stalled device is waited for when a source is closed; its thread then ends alone.
_CLOSE_WAIT_S = 1.0
_VGA_PIXELS = 640 * 480

# What a stream needs in order to be of now: no packets held back, no frames held back, and RTSP
# over TCP, since lost UDP packets smear the picture.
_STREAM_OPTIONS = {'fflags': 'nobuffer', 'flags': 'low_delay'}
_RTSP_OPTIONS = {**_STREAM_OPTIONS, 'rtsp_transport': 'tcp'}


class LiveSource(Source):
    """Frames read by a thread of its own, of which the newest is delivered.

    A frame that a newer one overtakes before it was taken counts as `dropped`. After an error
    the source is done; whoever wants to go on closes it and opens it anew.

    Args:
        images: yields images with their time of acquisition in ns and raises MediaError; it is
            run and closed by the thread alone.
        description: one line for a user.
        rate_hz: nominal rate, None when unknown.
        frame_id: of every frame.
        timeout_s: how long it may stay silent.
    """

    is_live = True

    def __init__(
        self,
        images: Iterator[tuple[NDArray[np.uint8], int]],
        *,
        description: str,
        rate_hz: float | None,
        frame_id: str,
        timeout_s: float,
    ) -> None:
        self.description = description
        self.rate_hz = rate_hz
        self._images = images
        self._frame_id = frame_id
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._error: MediaError | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._read, name=description, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        error = MediaError(f'{self.description}: the stream has ended')
        try:
            for image, stamp_ns in self._images:
                with self._changed:
                    if self._closed:
                        break
                    self.dropped += self._newest is not None
                    self._newest = Frame(image, stamp_ns, self._frame_id)
                    self._changed.notify_all()
        except MediaError as raised:
            error = raised
        finally:
            self._images.close()  # type: ignore[attr-defined]  # it is a generator
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def __next__(self) -> Frame:
        with self._changed:
            awake = self._changed.wait_for(
                lambda: self._closed or self._newest is not None or self._error is not None,
                self._timeout_s,
            )
            if self._closed:
                raise StopIteration
            frame, self._newest = self._newest, None
            if frame is not None:
                return frame
            if not awake:
                raise MediaTimeoutError(
                    f'{self.description}: no image for {self._timeout_s:g} s; it is stalled or '
                    f'unplugged'
                )
            assert self._error is not None
            raise self._error

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._newest = None
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_WAIT_S)


def open_camera(
    device: str,
    width: int | None,
    height: int | None,
    rate_hz: float | None,
    *,
    frame_id: str,
    timeout_s: float,
) -> LiveSource:
    """Open a V4L2 camera.

    Args:
        device: its number, or its path under /dev.
        width: capture width to ask for, pixels.
        height: capture height to ask for, pixels.
        rate_hz: rate to ask for.
        frame_id: of every frame.
        timeout_s: how long it may stay silent.

    Raises:
        MediaError: no such camera, no permission, in use, or not a camera.
    """
    path = Path(f'/dev/video{device}' if device.isdecimal() else device)
    if not path.exists():
        cameras = sorted(map(str, Path('/dev').glob('video*')))
        raise MediaError(f'{path}: no such camera; found: {", ".join(cameras) or "none"}')
    if not os.access(path, os.R_OK | os.W_OK):
        raise MediaError(f'{path}: no permission; add this user to the group that owns it (video)')
    capture = cv2.VideoCapture(str(path), cv2.CAP_V4L2)
    if not capture.isOpened():
        raise MediaError(f'{path}: in use by another program, or not a camera that delivers video')
    if (width or 0) * (height or 0) > _VGA_PIXELS:
        # Uncompressed, USB 2 carries larger images at a few per second only.
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*'MJPG'))
    asked = {
        cv2.CAP_PROP_FRAME_WIDTH: width,
        cv2.CAP_PROP_FRAME_HEIGHT: height,
        cv2.CAP_PROP_FPS: rate_hz,
    }
    for key, value in asked.items():
        if value is not None:
            capture.set(key, value)
    # A driver grants the nearest mode that the camera has, without a word.
    granted = {key: capture.get(key) for key in asked}
    mode = '{:g}x{:g}, {:g} Hz'.format(*granted.values())
    if any(value is not None and granted[key] != value for key, value in asked.items()):
        logger.warning('%s: has no such mode; it delivers %s', path, mode)
    return LiveSource(
        _read_capture(capture, str(path)),
        description=f'{path} (camera, {mode})',
        rate_hz=granted[cv2.CAP_PROP_FPS] or None,
        frame_id=frame_id,
        timeout_s=timeout_s,
    )


def open_pipeline(pipeline: str, *, frame_id: str, timeout_s: float) -> LiveSource:
    """Open a GStreamer pipeline; an appsink that delivers BGR is appended when it has none.

    Raises:
        MediaError: this OpenCV is built without GStreamer, or the pipeline does not start.
    """
    if 'GStreamer:                   YES' not in cv2.getBuildInformation():
        raise MediaError(
            'this OpenCV is built without GStreamer (the one from pip always is): use the one of '
            'the distribution (apt install python3-opencv), or give an rtsp:// or http:// URL'
        )
    if not re.search(r'\bappsink\b', pipeline):
        pipeline += (
            ' ! videoconvert ! video/x-raw,format=BGR ! appsink sync=false drop=true max-buffers=1'
        )
    name = hide_password(pipeline)
    capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        raise MediaError(f'{name}: GStreamer cannot start this pipeline')
    return LiveSource(
        _read_capture(capture, name),
        description=f'{name} (GStreamer)',
        rate_hz=capture.get(cv2.CAP_PROP_FPS) or None,
        frame_id=frame_id,
        timeout_s=timeout_s,
    )


def _read_capture(capture: cv2.VideoCapture, name: str) -> Iterator[tuple[NDArray[np.uint8], int]]:
    try:
        while capture.grab():
            stamp_ns = time.time_ns()  # before the decoding, which takes its time
            ok, image = capture.retrieve()
            if not ok:
                break
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise MediaError(
                    f'{name}: delivers {image.shape} {image.dtype}, not BGR; a pipeline must end '
                    f'in: videoconvert ! video/x-raw,format=BGR ! appsink'
                )
            yield np.asarray(image, np.uint8), stamp_ns
        raise MediaError(
            f'{name}: delivers no more images; it is unplugged, in use, or at its end'
        )
    finally:
        capture.release()


def open_url(
    url: str, *, loop: bool, rate_hz: float | None, frame_id: str, timeout_s: float
) -> Source:
    """Open a stream, or a recording that lies on a server.

    What states its duration is a recording (unless it comes by RTSP, which keeps its own pace);
    it waits for its reader and can loop.

    Raises:
        MediaError: the URL cannot be opened, or a rate is asked of a stream.
        MediaTimeoutError: the server does not answer in time.
    """
    is_rtsp = url.lower().startswith('rtsp')
    container = open_container(
        url, options=_RTSP_OPTIONS if is_rtsp else _STREAM_OPTIONS, timeout_s=timeout_s
    )
    if container.duration and not is_rtsp:
        container.close()
        return VideoFileSource(
            url, loop=loop, rate_hz=rate_hz, frame_id=frame_id, timeout_s=timeout_s
        )
    name = hide_password(url)
    if rate_hz is not None:
        container.close()
        raise MediaError(f'{name}: is a live stream, its rate cannot be chosen here')
    stream = container.streams.video[0]
    context = stream.codec_context
    rate = stream.average_rate or stream.guessed_rate
    return LiveSource(
        _read_stream(container, name, timeout_s),
        description=f'{name} ({context.name} {context.width}x{context.height}, live)',
        rate_hz=float(rate) if rate else None,
        frame_id=frame_id,
        timeout_s=timeout_s,
    )


def _read_stream(
    container: av.container.InputContainer, name: str, timeout_s: float
) -> Iterator[tuple[NDArray[np.uint8], int]]:
    convert = BgrConverter()
    with container:
        # No thread_type FRAME here: it would hold back one frame for each thread.
        packets = container.demux(container.streams.video[0])
        while True:
            try:
                packet = next(packets, None)
                stamp_ns = time.time_ns()
                pictures = packet.decode() if packet is not None else []
            except av.InvalidDataError:
                continue  # a damaged packet; the stream goes on
            except (av.ExitError, TimeoutError) as error:
                raise MediaTimeoutError(f'{name}: no data for {timeout_s:g} s') from error
            except (av.FFmpegError, OSError) as error:
                raise MediaError(f'{name}: the stream broke off: {reason(error)}') from error
            if packet is None:
                return
            for picture in pictures:
                yield convert(picture), stamp_ns
