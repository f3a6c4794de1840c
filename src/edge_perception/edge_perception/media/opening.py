"""`open_source`: finds the reader of whatever delivers images."""

from __future__ import annotations

import re
from pathlib import Path

from edge_perception.media.errors import MediaError, missing_path_error
from edge_perception.media.source import BAG_SUFFIXES, IMAGE_SUFFIXES, Source


def _holds_bag(folder: Path) -> bool:
    """A rosbag2 folder, finished or not."""
    return any(
        item.name == 'metadata.yaml' or item.suffix in BAG_SUFFIXES for item in folder.iterdir()
    )


def open_source(
    uri: str | Path,
    *,
    loop: bool = False,
    image_topic: str | None = None,
    width: int | None = None,
    height: int | None = None,
    rate_hz: float | None = None,
    frame_id: str | None = None,
    timeout_s: float = 5.0,
) -> Source:
    """Open whatever delivers images.

    Args:
        uri: a camera (`0`, `/dev/video0`), a video file, a still image, a folder of images, a
            rosbag2 folder or file (MCAP or SQLite), a URL (`rtsp://`, `http://`, `udp://` ...)
            or a GStreamer pipeline (recognised by ` ! `).
        loop: start recorded sources again at their end; the stamps go on growing.
        image_topic: which image topic of a bag; needed when it has several.
        width: capture width in pixels to ask of a camera; only cameras have a choice.
        height: capture height in pixels to ask of a camera.
        rate_hz: rate to ask of a camera; for recorded sources it replaces their own timing.
        frame_id: frame_id of the frames; None is the bag's own and '' elsewhere.
        timeout_s: how long a live source may stay silent before `MediaTimeoutError`.

    Returns:
        An open source. Stamps are media time from 0 for files and folders, header stamps for
        bags, `time.time_ns()` at acquisition for live sources.

    Raises:
        MediaError: with one line that says what is wrong and what to do.
    """
    # The readers are imported here because each needs a library that the others do not.
    text = str(uri).strip()
    if not text:
        raise MediaError('the source is empty: give a camera, a file, a folder, a bag or a URL')
    scheme = re.match(r'([A-Za-z][A-Za-z0-9+.-]*)://', text)
    if scheme and scheme.group(1).lower() == 'file':
        text, scheme = text[len('file://') :], None
    is_pipeline = scheme is None and re.search(r'\s!\s', text) is not None
    is_camera = text.isdecimal() or text.startswith('/dev/')
    if (width is not None or height is not None) and not is_camera:
        raise MediaError(f'{text}: width and height choose the mode of a camera, this is none')

    if is_camera or is_pipeline or scheme:
        from edge_perception.media import live

        if is_camera:
            return live.open_camera(
                text, width, height, rate_hz, frame_id=frame_id or '', timeout_s=timeout_s
            )
        if is_pipeline:
            return live.open_pipeline(text, frame_id=frame_id or '', timeout_s=timeout_s)
        return live.open_url(
            text, loop=loop, rate_hz=rate_hz, frame_id=frame_id or '', timeout_s=timeout_s
        )

    path = Path(text).expanduser()
    suffix = path.suffix.lower()
    try:
        if not path.exists():
            raise missing_path_error(path)
        is_bag = suffix in BAG_SUFFIXES or (path.is_dir() and _holds_bag(path))
    except OSError as error:
        raise MediaError(f'{path}: cannot be read: {error.strerror}') from error
    if is_bag:
        from edge_perception.media import bag

        return bag.BagSource(
            path, image_topic=image_topic, loop=loop, rate_hz=rate_hz, frame_id=frame_id
        )
    if suffix == '.bag':
        raise MediaError(f'{path}: a ROS 1 bag; make a ROS 2 one of it with rosbags-convert')
    if path.is_dir() or suffix in IMAGE_SUFFIXES:
        from edge_perception.media import folder

        return folder.ImageFolderSource(path, loop=loop, rate_hz=rate_hz, frame_id=frame_id or '')
    from edge_perception.media import video

    return video.VideoFileSource(path, loop=loop, rate_hz=rate_hz, frame_id=frame_id or '')
