"""Written video files."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_perception.media import MediaError
from edge_perception.media.video import VideoWriter

from .makers import gray_frame, level_of, marks


def _read(path: Path) -> list[NDArray[np.uint8]]:
    """All frames, by OpenCV."""
    capture = cv2.VideoCapture(str(path))
    images = []
    while True:
        ok, image = capture.read()
        if not ok:
            return images
        images.append(np.asarray(image, np.uint8))


def test_every_player_reads_it(tmp_path: Path) -> None:
    """H.264 with halved colour planes, its index at the front, every frame at its time."""
    path = tmp_path / 'out' / 'video.mp4'
    with VideoWriter(path, 29.97) as writer:
        for index in range(20):
            writer.write(gray_frame(level_of(index)))
        assert not path.exists()
    assert [item.name for item in path.parent.iterdir()] == ['video.mp4']
    data = path.read_bytes()
    assert data.index(b'moov') < data.index(b'mdat')
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ('h264', 'yuv420p')
        assert float(stream.average_rate or 0) == pytest.approx(30000 / 1001)
        times_s = [float(frame.time or 0) for frame in container.decode(stream)]
    np.testing.assert_allclose(times_s, np.arange(20) * 1001 / 30000, atol=1e-4)
    assert marks(_read(path)) == list(range(20))


@pytest.mark.parametrize(
    'bgr', [(30, 30, 30), (200, 40, 40), (40, 200, 40), (40, 40, 200), (250, 250, 250)]
)
def test_colours_are_kept(tmp_path: Path, bgr: tuple[int, int, int]) -> None:
    """What goes in comes out: no channel swapped, no range stretched."""
    with VideoWriter(tmp_path / 'v.mp4', 10) as writer:
        writer.write(np.full((48, 64, 3), bgr, np.uint8))
    (image,) = _read(tmp_path / 'v.mp4')
    np.testing.assert_allclose(image.mean(axis=(0, 1)), bgr, atol=3)


@pytest.mark.parametrize(('width', 'height'), [(63, 48), (64, 47), (33, 31)])
def test_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    """H.264 knows even sizes only: the last row or column is repeated, nothing is scaled."""
    image = np.full((height, width, 3), 90, np.uint8)
    image[:, -8:] = 180
    image[-8:] = 30
    with VideoWriter(tmp_path / 'v.mp4', 10) as writer:
        writer.write(image)
    (read,) = _read(tmp_path / 'v.mp4')
    assert read.shape == (height + height % 2, width + width % 2, 3)
    assert np.abs(read[:height, :width].astype(int) - image).mean() < 3
    assert np.abs(read[-1].astype(int) - 30).mean() < 5


def test_stamps_tell_the_time(tmp_path: Path) -> None:
    """A frame that was lost leaves a longer look at the one before, not a shorter video."""
    stamps_ms = [0, 100, 200, 700, 800, 750, 900]  # one goes back: it is shown right after
    with VideoWriter(tmp_path / 'v.mp4', 10) as writer:
        for index, stamp_ms in enumerate(stamps_ms):
            writer.write(gray_frame(level_of(index)), stamp_ns=5_000_000_000 + stamp_ms * 10**6)
    with av.open(str(tmp_path / 'v.mp4')) as container:
        times_ms = [1000 * float(frame.time or 0) for frame in container.decode(video=0)]
    np.testing.assert_allclose(times_ms, [0, 100, 200, 700, 800, 800, 900], atol=0.1)
    assert marks(_read(tmp_path / 'v.mp4')) == list(range(7))


def test_whole_or_absent(tmp_path: Path) -> None:
    """After an exception the old file is there, and no other."""
    path = tmp_path / 'v.mp4'
    path.write_text('old')
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, 10) as writer:
        writer.write(gray_frame(1))
        raise KeyboardInterrupt
    assert [item.name for item in tmp_path.iterdir()] == ['v.mp4']
    assert path.read_text() == 'old'
    with VideoWriter(path, 10) as writer:
        writer.write(gray_frame(1))
    writer.close()
    writer.abort()
    assert len(_read(path)) == 1


def test_errors(tmp_path: Path) -> None:
    """One line each."""
    with pytest.raises(MediaError, match='rate_hz must be above 0, got 0'):
        VideoWriter(tmp_path / 'v.mp4', 0)
    with pytest.raises(MediaError, match='cannot be written'):
        VideoWriter(tmp_path / 'v.unknown', 10)
    with pytest.raises(MediaError, match='not one frame was written'):
        VideoWriter(tmp_path / 'v.mp4', 10).close()
    writer = VideoWriter(tmp_path / 'v.mp4', 10)
    writer.write(gray_frame(1))
    with pytest.raises(MediaError, match='began with 64 x 48 pixels, this frame has 32 x 48'):
        writer.write(gray_frame(1, width=32))
    writer.close()
    with pytest.raises(MediaError, match='the video is closed'):
        writer.write(gray_frame(1))
    assert [item.name for item in tmp_path.iterdir()] == ['v.mp4']
