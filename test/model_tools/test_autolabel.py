from __future__ import annotations

import autolabel
import cv2
import numpy as np
import pytest
import yaml

from edge_perception.detection import Detector
from edge_perception.media import open_source
from edge_perception.types import Detections


@pytest.fixture
def arguments(default_model, demo_clip, tmp_path):
    return [
        '--model', str(default_model), '--source', str(demo_clip), '--out', str(tmp_path / 'set'),
        '--frames', '10-30', '--stride', '10',
    ]  # fmt: skip


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def test_labels_are_the_detections_on_the_chosen_frames(
    arguments, default_model, demo_clip, tmp_path
):
    assert autolabel.main(arguments) == 0
    out = tmp_path / 'set'
    assert files_of(out) == [
        'data.yaml',
        *(f'images/train/pedestrians/{n:06d}.jpg' for n in (10, 20, 30)),
        *(f'labels/train/pedestrians/{n:06d}.txt' for n in (10, 20, 30)),
    ]
    assert yaml.safe_load((out / 'data.yaml').read_text()) == {
        'train': 'images/train',
        'val': 'images/train',
        'names': {0: 'person'},
    }
    with (
        open_source(demo_clip) as source,
        Detector(model_path=default_model, score_threshold=0.3) as detector,
    ):
        frame = [next(source).image.copy() for _ in range(21)][20]
        found = detector(frame)
    assert len(found) > 0
    rows = np.loadtxt(out / 'labels' / 'train' / 'pedestrians' / '000020.txt', ndmin=2)
    assert set(rows[:, 0]) == {0}
    size = np.array([768, 576])
    centre, half = rows[:, 1:3] * size, rows[:, 3:] * size / 2
    np.testing.assert_allclose(
        np.concatenate((centre - half, centre + half), axis=1), found.xyxy, atol=0.01
    )
    image = cv2.imread(str(out / 'images' / 'train' / 'pedestrians' / '000020.jpg'))
    assert np.abs(image.astype(int) - frame).mean() < 4  # JPEG


def test_further_runs_append(arguments, tmp_path):
    assert autolabel.main(arguments) == 0
    assert autolabel.main([*arguments, '--name', 'again', '--split', 'val']) == 0
    out = tmp_path / 'set'
    assert len(list(out.glob('images/*/*/*.jpg'))) == 6
    assert yaml.safe_load((out / 'data.yaml').read_text())['val'] == 'images/val'


def test_frame_without_objects_has_an_empty_label(default_model, tmp_path):
    folder = tmp_path / 'empty'
    folder.mkdir()
    cv2.imwrite(str(folder / 'grey.png'), np.full((64, 64, 3), 114, np.uint8))
    status = autolabel.main(
        ['--model', str(default_model), '--source', str(folder), '--out', str(tmp_path / 'set')]
    )
    assert status == 0
    assert (tmp_path / 'set/labels/train/empty/000000.txt').read_text() == ''


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        (['--frames', '5000-6000'], 'none of the wanted frames'),
        (['--classes', 'tram'], 'unknown class tram: the model has person'),
        (['--classes', 'person', 'person'], 'names a class twice'),
        (['--source', 'absent.mp4'], 'absent.mp4'),
        (['--model', 'absent.onnx'], 'model file not found'),
    ],
)
def test_error_is_one_line_and_leaves_nothing(arguments, tmp_path, capsys, extra, message):
    assert autolabel.main([*arguments, *extra]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('autolabel: ')
    assert message in error
    assert files_of(tmp_path) == []


def test_existing_folder_and_other_classes_are_refused(arguments, tmp_path, capsys):
    assert autolabel.main(arguments) == 0
    before = files_of(tmp_path)
    assert autolabel.main(arguments) == 1
    assert 'choose another --name' in capsys.readouterr().err
    assert autolabel.main([*arguments, '--name', 'b', '--classes', 'walker=person']) == 1
    assert "not ('walker',)" in capsys.readouterr().err
    assert files_of(tmp_path) == before


def test_interruption_leaves_nothing(arguments, tmp_path, monkeypatch):
    real = autolabel.label_lines
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(autolabel, 'label_lines', interrupted)
    assert autolabel.main(arguments) == 130
    assert files_of(tmp_path) == []


@pytest.mark.parametrize(
    ('items', 'names', 'dataset_id'),
    [
        (['person'], ('person',), {'person': 0}),
        (
            ['person', 'vehicle=car,truck'],
            ('person', 'vehicle'),
            {'person': 0, 'car': 1, 'truck': 1},
        ),
    ],
)
def test_class_map(items, names, dataset_id):
    classes = autolabel.ClassMap.parse(items)
    assert classes.names == names
    assert classes.dataset_id == dataset_id


def test_label_lines_use_the_number_in_the_dataset():
    found = Detections(
        xyxy=np.array([[10, 20, 30, 60]], np.float32),
        score=np.ones(1, np.float32),
        class_id=np.array([7], np.int32),
    )
    classes = autolabel.ClassMap.parse(['person', 'vehicle=car,truck'])
    lines = autolabel.label_lines(found, (100, 200), {7: 'truck'}, classes)
    assert lines == ['1 0.100000 0.400000 0.100000 0.400000']


def test_tiles_cover_the_image_and_overlap():
    tiles = list(autolabel._tiles_xyxy((576, 768), 3))
    covered = np.zeros((576, 768), int)
    for left, top, right, bottom in tiles:
        covered[top:bottom, left:right] += 1
    assert len(tiles) == 9
    assert covered.min() == 1
    assert covered.max() == 4


def test_sizes_and_tiles_are_united_without_doubles(default_model, demo_clip):
    with open_source(demo_clip) as source:
        frame = next(source).image.copy()
    plain = autolabel.Teacher(str(default_model), image_sizes=[416])
    united = autolabel.Teacher(str(default_model), image_sizes=[416, 640], tiles=2)
    alone, together = plain(frame), united(frame)
    plain.close()
    united.close()
    assert len(together) >= len(alone) > 0
    from edge_perception.detection.nms import non_maximum_suppression

    kept = non_maximum_suppression(
        together.xyxy, together.score, together.class_id, iou_threshold=0.6
    )
    assert len(kept) == len(together)


@pytest.mark.parametrize(
    ('text', 'expected'), [('0-399', range(400)), ('5', range(5, 6)), ('7-7', range(7, 8))]
)
def test_frame_ranges_include_both_ends(text, expected):
    assert autolabel.parse_frames(text) == expected


def test_open_frame_range():
    assert 10**6 in autolabel.parse_frames('400-')
    assert 399 not in autolabel.parse_frames('400-')


@pytest.mark.parametrize('text', ['', 'a-b', '5-3', '-4', '1-2-3'])
def test_bad_frame_range(text):
    with pytest.raises(autolabel.argparse.ArgumentTypeError):
        autolabel.parse_frames(text)
