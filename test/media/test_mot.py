"""MOTChallenge text files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.media import MediaError
from edge_perception.media.mot import MotWriter, read_mot, write_tracks
from edge_perception.types import Detections, Tracks, TrackSource


def make_tracks(ids: list[int], xyxy: list[list[float]], score: float = 0.5) -> Tracks:
    """Tracks of class 0 with the given ids and boxes."""
    n = len(ids)
    return Tracks(
        xyxy=np.array(xyxy, np.float32).reshape(n, 4),
        score=np.full(n, score, np.float32),
        class_id=np.zeros(n, np.int32),
        track_id=np.array(ids, np.int64),
        age_s=np.zeros(n, np.float32),
        time_since_detection_s=np.zeros(n, np.float32),
        source=np.full(n, TrackSource.DETECTED, np.uint8),
    )


def test_reads_all_columns(tmp_path: Path) -> None:
    """Order, units and extra columns of the file stay; blank lines do not matter."""
    path = tmp_path / 'gt.txt'
    path.write_text('2,7,10,20,30,40,1,1,0.5\n\n1,-1,-5.5,0,3,4,0.25,3,1\n', encoding='utf-8')
    table = read_mot(path)
    assert table.frame.tolist() == [2, 1]
    assert table.track_id.tolist() == [7, -1]
    assert table.xywh.tolist() == [[10, 20, 30, 40], [-5.5, 0, 3, 4]]
    assert table.xyxy.tolist() == [[10, 20, 40, 60], [-5.5, 0, -2.5, 4]]
    assert table.score.tolist() == [1, 0.25]
    assert table.extra.tolist() == [[1, 0.5], [3, 1]]
    detections = table.detections(1)
    assert detections.xyxy.tolist() == [[-5.5, 0, -2.5, 4]]
    assert detections.score.tolist() == [0.25]
    assert len(table.detections(3)) == 0


@pytest.mark.parametrize('text', ['', '\n\n', '\r\n'])
def test_nothing_detected_is_an_empty_table(tmp_path: Path, text: str) -> None:
    """A sequence without detections is a file without lines, not an error."""
    path = tmp_path / 'det.txt'
    path.write_text(text, encoding='utf-8')
    table = read_mot(path)
    assert len(table) == 0
    assert table.xyxy.shape == (0, 4)
    assert len(table.detections(1)) == 0


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('1,2,3,4,5,6', 'expected frame,id,left,top,width,height,score,.* got 6'),
        ('1 2 3 4 5 6 7', r'.* separated by commas\), got 1'),
        ('1,2,3,4,five,6,7', "'five' is not a number"),
        ('1,2,3,4,,6,7', "'' is not a number"),
        ('1,2,nan,4,5,6,7', 'nan is not a finite number'),
        ('1,2,3,4,inf,6,7', 'inf is not a finite number'),
        ('0,2,3,4,5,6,7', 'frame 0 is not a whole number from 1'),
        ('1.5,2,3,4,5,6,7', r'frame 1\.5 is not a whole number from 1'),
        ('1,2.5,3,4,5,6,7', r'id 2\.5 is not a whole number'),
        ('1,2,3,4,-5,6,7', 'a box of -5 x 6 pixels'),
        ('1,2,3,4,5,6,7,8', '8 columns where the lines before have 7'),
        ('3,9,1,1,1,1,1', 'id 9 is twice on frame 3'),
    ],
)
def test_first_mistake_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    """File, line number and reason, on one line."""
    path = tmp_path / 'bad.txt'
    path.write_text(f'3,9,0,0,5,5,1\n\n{line}\n', encoding='utf-8')
    with pytest.raises(MediaError, match=f'bad.txt:3: {message}') as raised:
        read_mot(path)
    assert '\n' not in str(raised.value)


def test_detections_share_their_missing_id(tmp_path: Path) -> None:
    """Only ids from 0 must be unique on a frame."""
    path = tmp_path / 'det.txt'
    path.write_text('1,-1,0,0,5,5,1\n1,-1,0,0,5,5,1\n', encoding='utf-8')
    assert len(read_mot(path)) == 2


def test_missing_or_binary_file(tmp_path: Path) -> None:
    """Files that are not there or no text are named."""
    (tmp_path / 'gt.txt').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(MediaError, match='cannot be read as text'):
        read_mot(tmp_path / 'gt.txt')
    with pytest.raises(MediaError, match=r'no such file.* did you mean .*gt\.txt'):
        read_mot(tmp_path / 'gt.tx')


@given(
    st.lists(
        st.tuples(
            st.integers(1, 99),
            st.lists(st.integers(1, 10**9), unique=True, max_size=4),
            st.lists(st.floats(-1e4, 1e4, width=32), min_size=16, max_size=16),
            st.floats(0, 1, width=32),
        ),
        max_size=5,
        unique_by=lambda item: item[0],
    )
)
def test_written_tracks_are_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    frames: list[tuple[int, list[int], list[float], float]],
) -> None:
    """Whatever a tracker says survives the file, to the thousandth of a pixel."""
    path = tmp_path_factory.mktemp('mot') / 'tracks.txt'
    expected = []
    for number, ids, values, score in frames:
        boxes = np.sort(np.array(values, np.float32).reshape(4, 2, 2), axis=1)
        xyxy = boxes.reshape(4, 4)[: len(ids)]
        expected.append((number, make_tracks(ids, xyxy.tolist(), score)))
    write_tracks(path, expected)
    table = read_mot(path)
    assert len(table) == sum(len(tracks) for _, tracks in expected)
    for number, tracks in expected:
        rows = table.on_frame(number)
        assert table.track_id[rows].tolist() == tracks.track_id.tolist()
        np.testing.assert_allclose(table.xyxy[rows], tracks.xyxy, atol=0.0021)
        np.testing.assert_allclose(table.score[rows], tracks.score, atol=0.0001)


def test_lines_are_those_of_the_challenge(tmp_path: Path) -> None:
    """Ten columns, as the challenge's and TrackEval's readers expect them."""
    path = tmp_path / 'tracks.txt'
    with MotWriter(path) as writer:
        writer.write(1, make_tracks([4], [[1, 2, 11, 22]], 0.75))
        writer.write(2, Tracks.empty())
        writer.write_detections(
            3,
            Detections(
                np.array([[0, 0, 2, 3]], np.float32),
                np.ones(1, np.float32),
                np.zeros(1, np.int32),
            ),
        )
    assert path.read_text().splitlines() == [
        '1,4,1.000,2.000,10.000,20.000,0.7500,-1,-1,-1',
        '3,-1,0.000,0.000,2.000,3.000,1.0000,-1,-1,-1',
    ]


def test_file_is_whole_or_absent(tmp_path: Path) -> None:
    """While it is written, and after an error, the old file is there and no other."""
    path = tmp_path / 'tracks.txt'
    path.write_text('old')
    with pytest.raises(KeyboardInterrupt), MotWriter(path) as writer:
        writer.write(1, make_tracks([4], [[1, 2, 11, 22]]))
        assert path.read_text() == 'old'
        raise KeyboardInterrupt
    assert [item.name for item in tmp_path.iterdir()] == ['tracks.txt']
    assert path.read_text() == 'old'
    with pytest.raises(MediaError, match='frames count from 1, got 0'), MotWriter(path) as writer:
        writer.write(0, make_tracks([4], [[1, 2, 11, 22]]))
    assert path.read_text() == 'old'


def test_reference_files_are_read(reference_data: Path) -> None:
    """All 22 files of MOT15 that are at hand."""
    paths = sorted(reference_data.glob('data/mot/MOT15/*/*/*t.txt'))
    assert len(paths) == 22
    assert sum(len(read_mot(path)) for path in paths) == 78285
