"""The errors of cameras, video files, image folders, bags and MOTChallenge files."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from edge_perception.types import EdgePerceptionError


class MediaError(EdgePerceptionError):
    """A source or a recording cannot be opened, read or written; the text is one line."""


class MediaTimeoutError(MediaError):
    """A live source has delivered no frame for the time allowed: unplugged, stalled or gone."""


def hide_password(uri: str) -> str:
    """The URI as it may stand in a log: `rtsp://user:***@camera` for `rtsp://user:secret@camera`."""
    return re.sub(r'(://[^/@:\s]*):[^/@\s]*@', r'\1:***@', uri)


def missing_path_error(path: Path) -> MediaError:
    """The error for a path that does not exist, with the nearest name in its folder."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return MediaError(f'{path}: no such file; the folder {path.parent} cannot be read either')
    close = difflib.get_close_matches(path.name, names, n=1)
    hint = f'; did you mean {path.parent / close[0]}?' if close else ''
    return MediaError(f'{path}: no such file, folder or device{hint}')


class ImageConversionError(MediaError):
    """An image message is malformed, or its encoding is none that can be converted."""
