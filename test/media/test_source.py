"""Recorded sources: video files, folders of images, stills."""

from __future__ import annotations

import logging
import struct
import threading
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import psutil
import pytest

from edge_perception.media import MediaError, open_source
from edge_perception.media.folder import natural_key

from .makers import gray_frame, level_of, make_video, marks

CLIP = Path(__file__).parents[1] / 'data' / 'pedestrians.mp4'
MS = 1_000_000


def test_demo_clip_has_every_frame_at_ten_hertz() -> None:
    """Timing and count of the committed clip are exact, also as OpenCV reads it."""
    with open_source(CLIP) as source:
        assert (source.rate_hz, source.frame_count, source.is_live) == (10.0, 395, False)
        stamps_ns = [frame.stamp_ns for frame in source]
    assert stamps_ns == [index * 100 * MS for index in range(395)]
    capture = cv2.VideoCapture(str(CLIP))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 395
    assert capture.get(cv2.CAP_PROP_FPS) == 10.0


def test_pixels_agree_with_opencv() -> None:
    """An independent reader of the same file sees the same picture."""
    capture = cv2.VideoCapture(str(CLIP))
    with open_source(CLIP) as source:
        for _, frame in zip(range(3), source, strict=False):
            _, expected = capture.read()
            assert frame.image.flags.c_contiguous
            difference = np.abs(frame.image.astype(int) - expected)
            assert difference.max() <= 2


@pytest.mark.parametrize(
    ('name', 'codec'),
    [
        ('video.mp4', 'libx264'),
        ('video.mkv', 'libx264'),  # states no frame count
        ('video.avi', 'mpeg4'),
        ('video.mov', 'mjpeg'),
        ('video.ts', 'libx264'),  # begins at a time other than 0
    ],
)
def test_containers(tmp_path: Path, name: str, codec: str) -> None:
    """Every common container gives all frames, in order, from time 0."""
    path = make_video(tmp_path / name, range(12), ticks_per_s=25, codec=codec)
    with open_source(path) as source:
        assert source.frame_count == 12
        frames = list(source)
    assert marks([frame.image for frame in frames]) == list(range(12))
    assert [frame.stamp_ns for frame in frames] == [index * 40 * MS for index in range(12)]


def test_variable_rate_keeps_its_times(tmp_path: Path) -> None:
    """A phone's video is stamped by its presentation times, not by an average rate."""
    times_ms = [0, 30, 100, 110, 400, 1000]
    with open_source(make_video(tmp_path / 'phone.mp4', times_ms)) as source:
        assert [frame.stamp_ns for frame in source] == [time * MS for time in times_ms]


def test_dropped_frames_in_an_avi(tmp_path: Path) -> None:
    """AVI marks a missing frame by an empty chunk: a time that passes, but no frame."""
    path = make_video(tmp_path / 'gap.avi', [0, 1, 5, 6], ticks_per_s=25, codec='mpeg4')
    with open_source(path) as source:
        assert source.frame_count == 4
        assert [frame.stamp_ns for frame in source] == [0, 40 * MS, 200 * MS, 240 * MS]


def test_loop_goes_on_in_time(tmp_path: Path) -> None:
    """Stamps of the second round are those of the first, shifted by the duration of a round."""
    path = make_video(tmp_path / 'loop.mp4', [0, 40, 80, 120])
    with open_source(path, loop=True) as source:
        frames, rounds = [], []
        for frame in source:
            frames.append(frame)
            rounds.append(source.round)
            if len(frames) == 10:
                break
    assert [frame.stamp_ns for frame in frames] == [index * 40 * MS for index in range(10)]
    assert marks([frame.image for frame in frames]) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert rounds == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ('name', 'codec', 'finds_start'),
    [
        ('video.mp4', 'libx264', True),
        ('video.mkv', 'libx264', True),
        ('video.avi', 'mpeg4', True),
        ('video.ts', 'libx264', True),
        ('video.h264', 'libx264', False),  # bare frames without times: there is nowhere to jump
    ],
)
def test_every_round_is_the_same_and_keeps_its_decoder(
    tmp_path: Path, name: str, codec: str, finds_start: bool
) -> None:
    """A decoder made anew each round would be new threads, each with memory of its own."""
    path = make_video(tmp_path / name, range(6), ticks_per_s=25, codec=codec)
    levels, threads = [], []
    with open_source(path, loop=True) as source:
        for frame in source:
            levels += marks([frame.image])
            if len(levels) % 6 == 3:
                threads.append({thread.id for thread in psutil.Process().threads()})
            if len(levels) == 24:
                break
    assert levels == [*range(6)] * 4
    if finds_start:
        assert threads[1:] == threads[:-1]


def test_loop_of_a_single_image_goes_on_in_time(tmp_path: Path) -> None:
    """One image has no second one to tell its duration: the rate does."""
    cv2.imwrite(str(tmp_path / 'one.png'), gray_frame(9))
    with open_source(tmp_path / 'one.png', loop=True, rate_hz=4) as source:
        stamps_ns = [next(source).stamp_ns for _ in range(3)]
    assert stamps_ns == [0, 250 * MS, 500 * MS]


def test_rate_replaces_the_times(tmp_path: Path) -> None:
    """`rate_hz` stamps by counting, over the rounds of a loop too."""
    path = make_video(tmp_path / 'slow.mp4', [0, 500, 900])
    with open_source(path, rate_hz=3, loop=True) as source:
        assert source.rate_hz == 3
        stamps_ns = [next(source).stamp_ns for _ in range(7)]
    assert stamps_ns == [round(index * 1e9 / 3) for index in range(7)]


@pytest.mark.parametrize('rate_hz', [0.0, -1.0, float('nan')])
def test_rate_must_be_positive(rate_hz: float) -> None:
    """A rate that is none is refused when the source is opened."""
    with pytest.raises(MediaError, match='rate_hz must be above 0'):
        open_source(CLIP, rate_hz=rate_hz)


def _rotate_by_metadata(path: Path, matrix: tuple[int, ...]) -> None:
    """Write a display matrix into the track header of an MP4 (ISO/IEC 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    # Version and flags, times, id, reserved, duration, reserved, layer, group, volume: 40 bytes.
    start = data.index(b'tkhd') + 4 + 40
    data[start : start + 36] = struct.pack('>9i', *matrix)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ('quarter_turns', 'matrix'),
    [
        (-1, (0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)),
        (2, (-(1 << 16), 0, 0, 0, -(1 << 16), 0, 64 << 16, 48 << 16, 1 << 30)),
        (1, (0, -(1 << 16), 0, 1 << 16, 0, 0, 0, 64 << 16, 1 << 30)),
    ],
)
def test_rotated_video_is_upright(
    tmp_path: Path, quarter_turns: int, matrix: tuple[int, ...]
) -> None:
    """A phone held upright records lying images and a rotation; players, and we, apply it."""
    image = gray_frame(30)
    image[:24, :32] = 220  # one bright corner tells all turns apart
    path = make_video(tmp_path / 'phone.mp4', [0, 40], images=[image, image])
    _rotate_by_metadata(path, matrix)
    expected = np.rot90(image, quarter_turns)
    with open_source(path) as source:
        actual = next(source).image
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected).mean() < 5


def test_truncated_video_ends_early(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The frames before the cut are delivered, then the source ends, with one warning."""
    data = CLIP.read_bytes()
    path = tmp_path / 'cut.mp4'
    path.write_bytes(data[: len(data) // 3])
    with caplog.at_level(logging.WARNING), open_source(path, loop=True) as source:
        first_round = [frame for frame in source if source.round == 0 or source.close()]
    assert 50 < len(first_round) < 300
    assert len(caplog.records) == 1
    assert f'{len(first_round)} of 395 frames' in caplog.text


def test_damaged_video_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that are wrong in the middle cost some frames, not the rest of the file."""
    path = make_video(tmp_path / 'damaged.mov', range(100), ticks_per_s=25, codec='mjpeg')
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux() if packet.size]
    for position, size in packets[40:44]:
        data[position : position + size] = b'\x55' * size
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING), open_source(path) as source:
        frames = list(source)
    # The decoder's threads report an error late, and may take a neighbour down with it.
    assert source.skipped >= 1
    assert 92 <= len(frames) <= 96
    assert frames[-1].stamp_ns == 99 * 40 * MS
    assert 'damaged packets' in caplog.text


def test_folder_is_sorted_as_people_count(tmp_path: Path) -> None:
    """frame10 comes after frame9; other files do not matter."""
    for index in (0, 2, 9, 10, 100):
        cv2.imwrite(str(tmp_path / f'frame{index}.png'), gray_frame(index))
    (tmp_path / 'notes.txt').write_text('not an image')
    with open_source(tmp_path) as source:
        assert source.frame_count == 5
        frames = list(source)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 2, 9, 10, 100]
    assert [frame.stamp_ns for frame in frames] == [index * 100 * MS for index in range(5)]


@pytest.mark.parametrize(
    ('names', 'expected'),
    [
        (['b2', 'a10', 'a9'], ['a9', 'a10', 'b2']),
        (['10.png', '9.png', '1.png'], ['1.png', '9.png', '10.png']),
        (['1_10', '1_9', '01_11'], ['1_9', '1_10', '01_11']),
        (['a', '1'], ['1', 'a']),
    ],
)
def test_natural_order(names: list[str], expected: list[str]) -> None:
    """Runs of digits count as numbers."""
    assert sorted(names, key=natural_key) == expected


def test_still_image_and_gray_and_alpha(tmp_path: Path) -> None:
    """Whatever the file holds, the frame is BGR."""
    for name, image in (
        ('gray.png', np.full((4, 6), 7, np.uint8)),
        ('alpha.png', np.full((4, 6, 4), 7, np.uint8)),
        ('sixteen.png', np.full((4, 6), 7 * 257, np.uint16)),
    ):
        cv2.imwrite(str(tmp_path / name), image)
        with open_source(tmp_path / name) as source:
            (frame,) = source
        np.testing.assert_array_equal(frame.image, gray_frame(7, 6, 4))


def test_file_url_frame_id_and_user_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of files are taken as people write them."""
    make_video(tmp_path / 'v.mp4', [0, 40])
    monkeypatch.setenv('HOME', str(tmp_path))
    for uri in (f'file://{tmp_path}/v.mp4', '~/v.mp4', tmp_path / 'v.mp4'):
        with open_source(uri, frame_id='front') as source:
            assert next(source).frame_id == 'front'


def test_closed_source_ends() -> None:
    """After `close`, from whichever thread, the iteration ends; closing twice is fine."""
    source = open_source(CLIP, loop=True)
    seen = threading.Event()

    def read() -> None:
        for _ in source:
            seen.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert seen.wait(10)
    source.close()
    thread.join(10)
    assert not thread.is_alive()
    source.close()
    assert list(source) == []


def _audio(path: Path) -> Path:
    with wave.open(str(path), 'wb') as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))
    return path


def _corrupt(path: Path) -> Path:
    path.write_bytes(b'\x00\x01\x02 this is no video' * 100)
    return path


def _headless(path: Path) -> Path:
    """An MP4 cut off while it was being recorded: the index at its end is missing."""
    make_video(path, range(0, 400, 40))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b'moov') - 4])
    return path


def _damaged_image(path: Path) -> Path:
    path.write_bytes(b'\x89PNG\r\n\x1a\n')
    return path


def _empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def _ros1(path: Path) -> Path:
    path.write_bytes(b'#ROSBAG V2.0\n')
    return path


@pytest.mark.parametrize(
    ('make', 'name', 'message'),
    [
        (_audio, 'sound.wav', r'has no video stream \(found: audio\)'),
        (_corrupt, 'noise.mp4', 'cannot be opened as a video'),
        (_headless, 'cut.mp4', 'cannot be opened as a video'),
        (_damaged_image, 'broken.png', 'not an image that can be decoded'),
        (_empty_folder, 'empty', 'neither a rosbag2 folder .* nor one with images'),
        (_ros1, 'old.bag', 'a ROS 1 bag; .* rosbags-convert'),
        (Path.touch, 'nothing.mp4', 'cannot be opened as a video'),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(
    tmp_path: Path, make: object, name: str, message: str
) -> None:
    """The error names the file and says what is wrong with it, on one line."""
    path = tmp_path / name
    make(path)  # type: ignore[operator]
    with pytest.raises(MediaError, match=message) as raised:
        open_source(path)
    assert str(path) in str(raised.value)
    assert '\n' not in str(raised.value)


def test_missing_file_suggests_the_nearest_name(tmp_path: Path) -> None:
    """A slip of the pen is answered with what was probably meant."""
    (tmp_path / 'warehouse.mp4').touch()
    with pytest.raises(MediaError, match=r'did you mean .*warehouse\.mp4\?'):
        open_source(tmp_path / 'warehose.mp4')
    with pytest.raises(MediaError, match='no such file') as raised:
        open_source(tmp_path / 'entirely-different.avi')
    assert 'did you mean' not in str(raised.value)


def test_path_that_the_system_refuses() -> None:
    """What the operating system says is passed on as a MediaError (Python 3.14 does not tell)."""
    with pytest.raises(MediaError, match=r'cannot be read: File name too long|no such file'):
        open_source('/tmp/' + 'x' * 300)


@pytest.mark.parametrize('uri', ['', '   '])
def test_empty_uri(uri: str) -> None:
    """An unset parameter is named as such."""
    with pytest.raises(MediaError, match='the source is empty'):
        open_source(uri)


def test_capture_size_is_for_cameras() -> None:
    """A size that would silently do nothing is refused."""
    with pytest.raises(MediaError, match='width and height choose the mode of a camera'):
        open_source(CLIP, width=640, height=480)


def test_levels_tell_frames_apart() -> None:
    """The mark in a made frame is found again (guards the other tests)."""
    assert marks([gray_frame(level_of(index)) for index in range(25)]) == list(range(25))
