from __future__ import annotations

import json

import cv2
import evaluate_detection
import numpy as np
import pytest

from edge_perception.detection import Detector
from edge_perception.media import open_source


@pytest.fixture
def own_labels(default_model, demo_clip, tmp_path):
    """Three frames of the clip in YOLO layout, labelled with what the default model finds."""
    for kind in ('images', 'labels'):
        (tmp_path / kind / 'val').mkdir(parents=True)
    with Detector(model_path=default_model, score_threshold=0.25) as detector:
        with open_source(demo_clip) as source:
            frames = [frame.image.copy() for frame, _ in zip(source, range(41), strict=False)]
        for number in (0, 20, 40):
            cv2.imwrite(str(tmp_path / 'images' / 'val' / f'{number}.png'), frames[number])
            found = detector(frames[number])
            lines = []
            for left, top, right, bottom in found.xyxy.tolist():
                lines.append(
                    f'0 {(left + right) / 2 / 768} {(top + bottom) / 2 / 576} '
                    f'{(right - left) / 768} {(bottom - top) / 576}\n'
                )
            (tmp_path / 'labels' / 'val' / f'{number}.txt').write_text(''.join(lines))
    data = tmp_path / 'data.yaml'
    data.write_text('val: images/val\nnames: [person]\n')
    return data


def test_a_detector_agrees_with_itself(own_labels, default_model, tmp_path, capsys):
    out = tmp_path / 'scores.json'
    status = evaluate_detection.main(
        ['--model', str(default_model), '--data', str(own_labels), '--iou', '0.6',
         '--json', str(out)]
    )  # fmt: skip
    assert status == 0
    scores = json.loads(out.read_text())
    assert scores == json.loads(capsys.readouterr().out)
    assert scores['images'] == 3
    assert scores['objects'] > 10
    # What it finds below the labels' threshold comes after all of them and costs nothing.
    assert scores['mAP50-95'] == pytest.approx(100, abs=0.1)
    assert scores['mAP50-95_by_class'] == {'person': pytest.approx(100, abs=0.1)}


def test_shifted_labels_cost_the_strict_thresholds(own_labels, default_model, tmp_path):
    for path in tmp_path.glob('labels/val/*.txt'):
        rows = np.loadtxt(path, ndmin=2)
        rows[:, 1] += 0.2 * rows[:, 3]  # IoU 0.8 / 1.2 = 0.67
        np.savetxt(path, rows, fmt='%g')
    names, images = evaluate_detection.yolo_dataset(own_labels, 'val')
    with Detector(model_path=default_model, iou_threshold=0.6, score_threshold=0.01) as detector:
        scores = evaluate_detection.evaluate(detector, evaluate_detection.read_yolo(images), names)
    assert scores['mAP50'] > 90
    assert scores['mAP75'] < 10
    assert scores['mAP50-95'] == pytest.approx(40, abs=10)  # 0.50, 0.55, 0.60 and 0.65 hold


def test_video_with_mot_ground_truth(default_model, demo_clip, tmp_path):
    with (
        open_source(demo_clip) as source,
        Detector(model_path=default_model, iou_threshold=0.6) as detector,
    ):
        frame = [next(source).image.copy() for _ in range(6)][5]
        found = detector(frame)
    lines = [
        f'6,{number},{left},{top},{right - left},{bottom - top},1,-1,-1,-1\n'
        for number, (left, top, right, bottom) in enumerate(found.xyxy.tolist(), start=1)
    ]
    # An object that does not count, and one of another frame, must not be missed.
    lines += ['6,90,1,1,50,50,0,-1,-1,-1\n', '7,91,1,1,50,50,1,-1,-1,-1\n']
    gt = tmp_path / 'gt.txt'
    gt.write_text(''.join(lines))
    images = evaluate_detection.read_mot_video(str(demo_clip), gt, range(5, 6), 1)
    with Detector(model_path=default_model, iou_threshold=0.6) as detector:
        scores = evaluate_detection.evaluate(detector, images, {0: 'person'})
    assert scores['images'] == 1
    assert scores['objects'] == len(found)
    assert scores['mAP50'] == pytest.approx(100, abs=0.1)


def test_model_that_finds_nothing_scores_zero(own_labels, default_model):
    names, images = evaluate_detection.yolo_dataset(own_labels, 'val')
    with Detector(model_path=default_model, score_threshold=1.0) as detector:
        scores = evaluate_detection.evaluate(detector, evaluate_detection.read_yolo(images), names)
    assert scores['mAP50-95'] == 0


@pytest.mark.parametrize(
    ('yaml', 'message'),
    [
        ('val: images/val\nnames: [tram]\n', 'share no class: person and tram'),
        ('train: images/val\nnames: [person]\n', "no split 'val'"),
        ('val: nowhere\nnames: [person]\n', "no images of the split 'val'"),
        ('val: images/val\n', 'no class names'),
    ],
)
def test_unusable_dataset_is_one_line(own_labels, default_model, capsys, yaml, message):
    own_labels.write_text(yaml)
    status = evaluate_detection.main(['--model', str(default_model), '--data', str(own_labels)])
    assert status == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('evaluate_detection: ')
    assert message in error


def test_images_without_objects_cannot_be_scored(own_labels, default_model, tmp_path, capsys):
    for path in tmp_path.glob('labels/val/*.txt'):
        path.write_text('')
    assert evaluate_detection.main(['--model', str(default_model), '--data', str(own_labels)]) == 1
    assert 'no object on any' in capsys.readouterr().err
