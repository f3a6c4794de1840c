from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import train
import yaml

from edge_perception.detection import Detector

YOLOV8P = Path(train.__file__).with_name('yolov8p.yaml')


def test_one_epoch_leaves_a_run_and_weights_that_detect(squares, tmp_path):
    pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    latest = tmp_path / 'models' / 'latest.pt'
    folder = train.train(
        str(YOLOV8P),
        squares,
        name='test',
        epochs=1,
        image_size=64,
        batch=2,
        seed=3,
        device='cpu',
        runs=tmp_path / 'runs',
        latest=latest,
        plots=False,
    )
    assert folder == tmp_path / 'runs' / 'test'
    with (folder / 'results.csv').open() as file:
        assert len(list(csv.DictReader(file))) == 1
    settings = yaml.safe_load((folder / 'args.yaml').read_text())
    assert settings['cos_lr'] is True
    assert settings['deterministic'] is True
    assert (settings['seed'], settings['imgsz'], settings['batch']) == (3, 64, 2)
    assert settings['nbs'] == 2  # every batch is a step
    assert latest.read_bytes() == (folder / 'weights' / 'best.pt').read_bytes()
    assert os.listdir(latest.parent) == ['latest.pt']
    with Detector(model_path=latest, device='cpu') as detector:
        assert detector.names == {0: 'square'}
        assert detector.image_hw == (64, 64)


def test_existing_run_is_not_overwritten(squares, tmp_path):
    (tmp_path / 'test').mkdir()
    with pytest.raises(train.TrainError, match='choose another --name'):
        train.train(str(YOLOV8P), squares, name='test', runs=tmp_path)
    assert list((tmp_path / 'test').iterdir()) == []


def remove_labels(data: Path) -> None:
    for path in data.parent.glob('labels/train/*'):
        path.unlink()


def remove_images(data: Path) -> None:
    for path in data.parent.glob('images/train/*'):
        path.unlink()


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        pytest.param(remove_labels, 'no labels for the images', id='no labels'),
        pytest.param(remove_images, 'no images in', id='no images'),
        pytest.param(lambda data: data.unlink(), 'cannot read the dataset', id='no YAML'),
        pytest.param(lambda data: data.write_text('a: ['), 'cannot read the dataset', id='broken'),
        pytest.param(lambda data: data.write_text('train: x'), 'no YOLO dataset', id='no names'),
    ],
)
def test_unusable_dataset_is_refused_before_training(squares, tmp_path, damage, message):
    damage(squares)
    with pytest.raises(train.TrainError, match=message) as caught:
        train.train(str(YOLOV8P), squares, name='test', runs=tmp_path / 'runs')
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'runs').exists()


def test_dataset_with_an_own_root_is_accepted(squares, tmp_path):
    moved = tmp_path / 'moved.yaml'
    moved.write_text(f'path: {squares.parent}\n{squares.read_text()}')
    train.check_dataset(moved)


def test_missing_model_is_one_line(squares, tmp_path, capsys):
    status = train.main(
        ['--model', str(tmp_path / 'no.pt'), '--data', str(squares), '--name', 'never-made']
    )
    assert status == 1
    assert capsys.readouterr().err == f'train: model not found: {tmp_path / "no.pt"}\n'


def test_copy_replaces_the_whole_file_or_nothing(tmp_path):
    source, target = tmp_path / 'a', tmp_path / 'b'
    source.write_text('new')
    target.write_text('old')
    train.copy_atomically(source, target)
    assert target.read_text() == 'new'
    with pytest.raises(train.TrainError, match='cannot write'):
        train.copy_atomically(tmp_path / 'absent', target)
    assert target.read_text() == 'new'
    assert sorted(os.listdir(tmp_path)) == ['a', 'b']
