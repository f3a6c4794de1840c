"""A folder of still images, or one of them, as a source of frames."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from edge_perception.media.errors import MediaError
from edge_perception.media.source import IMAGE_SUFFIXES, NANOSECONDS, RecordedSource
from edge_perception.types import Frame

DEFAULT_RATE_HZ = 10.0
"""Images in a folder carry no time; they are shown at this rate unless one is given."""


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """A sort key that puts `frame10` after `frame9`."""
    return [
        (0, int(part)) if part.isdecimal() else (1, part.lower())
        for part in re.split(r'(\d+)', name)
        if part
    ]


class ImageFolderSource(RecordedSource):
    """The images of a folder in natural order of their names.

    Args:
        path: the folder, or one image file.
        loop: begin again after the last image.
        rate_hz: images a second; None is `DEFAULT_RATE_HZ`.
        frame_id: of every frame.

    Raises:
        MediaError: there is no image, or one of them cannot be decoded.
    """

    def __init__(
        self,
        path: Path,
        *,
        loop: bool = False,
        rate_hz: float | None = None,
        frame_id: str = '',
    ) -> None:
        super().__init__(loop=loop, rate_hz=rate_hz)
        if path.is_dir():
            self._paths = sorted(
                (item for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES),
                key=lambda item: natural_key(item.name),
            )
            if not self._paths:
                raise MediaError(
                    f'{path}: neither a rosbag2 folder (no metadata.yaml, .mcap or .db3) nor '
                    f'one with images ({", ".join(sorted(IMAGE_SUFFIXES))})'
                )
            self.description = f'{path} ({len(self._paths)} images)'
        else:
            self._paths = [path]
            self.description = f'{path} (image)'
        self._frame_id = frame_id
        self.rate_hz = DEFAULT_RATE_HZ
        self._begin()

    @property
    def frame_count(self) -> int:
        """Images in the folder."""
        return len(self._paths)

    def _read_round(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            try:
                data = np.fromfile(path, np.uint8)
            except OSError as error:
                raise MediaError(f'{path}: {error.strerror}') from error
            image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
            if image is None:
                raise MediaError(f'{path}: not an image that can be decoded, or a damaged one')
            stamp_ns = round(index * NANOSECONDS / DEFAULT_RATE_HZ)
            yield Frame(np.asarray(image, np.uint8), stamp_ns, self._frame_id)

    def _release(self) -> None:
        """Nothing stays open between two images."""
