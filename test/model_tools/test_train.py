from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

import augmentations
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
    with (folder / 'per_class.csv').open() as file:
        assert [row['Class'] for row in csv.DictReader(file)] in (['square'], [])
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


def loader_transforms(trainer):
    """What the training loader applies, flat, by class name."""
    found = {}
    waiting = [trainer.train_loader.dataset.transforms]
    while waiting:
        item = waiting.pop()
        if hasattr(item, 'transforms') and not callable(item.transforms):
            waiting += list(item.transforms)
        else:
            # There are two flips.
            found[getattr(item, 'direction', type(item).__name__)] = item
        pre = getattr(item, 'pre_transform', None)
        if pre is not None:
            waiting.append(pre)
    return found


def test_the_loader_applies_the_strategy(squares, tmp_path, monkeypatch):
    """Changed values, so that Ultralytics' own defaults cannot pass for ours."""
    ultralytics = pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    strategy = {'mosaic': 0.9, 'fliplr': 0.4, 'hsv_h': 0.02, 'hsv_s': 0.6, 'hsv_v': 0.3}
    monkeypatch.setattr(
        augmentations, 'GEOMETRY_AND_COLOUR', {**augmentations.GEOMETRY_AND_COLOUR, **strategy}
    )
    monkeypatch.setattr(augmentations, 'MULTI_SCALE', 0.3)
    seen = {}

    def look(trainer):
        seen.update(loader_transforms(trainer))
        seen['args'] = trainer.args

    real = ultralytics.YOLO

    def with_a_look(*args, **options):
        network = real(*args, **options)
        network.add_callback('on_train_epoch_start', look)
        return network

    monkeypatch.setattr(ultralytics, 'YOLO', with_a_look)
    train.train(
        str(YOLOV8P), squares, name='test', epochs=1, image_size=64, batch=4, device='cpu',
        multi_scale=True, runs=tmp_path / 'runs', latest=tmp_path / 'latest.pt', plots=False,
        workers=0,
    )  # fmt: skip
    assert seen['Mosaic'].p == 0.9
    assert seen['RandomHSV'].hgain == 0.02
    assert (seen['RandomHSV'].sgain, seen['RandomHSV'].vgain) == (0.6, 0.3)
    assert seen['args'].multi_scale == 0.3
    assert (seen['horizontal'].p, seen['vertical'].p) == (0.4, 0.0)
    pixel = seen['Albumentations'].transform.transforms
    assert [type(item).__name__ for item in pixel] == ['Blur', 'MedianBlur', 'ToGray', 'CLAHE']
    assert {item.p for item in pixel} == {0.01}


def test_short_runs_end_without_mosaic():
    assert augmentations.settings(epochs=100, multi_scale=False)['close_mosaic'] == 10
    assert augmentations.settings(epochs=10, multi_scale=False)['close_mosaic'] == 2
    assert augmentations.settings(epochs=10, multi_scale=False)['multi_scale'] == 0


def test_interrupted_run_goes_on(squares, tmp_path, monkeypatch):
    ultralytics = pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    real = ultralytics.YOLO

    def interrupting(*args, **options):
        network = real(*args, **options)

        def stop(trainer):
            if trainer.epoch == 1:
                raise KeyboardInterrupt

        network.add_callback('on_train_epoch_start', stop)
        return network

    runs, latest = tmp_path / 'runs', tmp_path / 'latest.pt'
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ultralytics, 'YOLO', interrupting)
        train.train(
            str(YOLOV8P), squares, name='test', epochs=2, image_size=64, batch=4, device='cpu',
            runs=runs, latest=latest, plots=False, workers=0,
        )  # fmt: skip
    assert not latest.exists()
    folder = train.resume('test', runs=runs, latest=latest)
    with (folder / 'results.csv').open() as file:
        assert [row['epoch'].strip() for row in csv.DictReader(file)] == ['1', '2']
    assert latest.is_file()


def test_nothing_to_resume_is_one_line(tmp_path):
    with pytest.raises(train.TrainError, match='nothing to go on from'):
        train.resume('absent', runs=tmp_path)


def test_batch_norm_that_was_folded_is_left_alone(checkpoint, reference_data):
    ultralytics = pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    folded = ultralytics.YOLO(str(reference_data / 'models' / 'yolov8n.pt')).model
    fresh = ultralytics.YOLO(str(checkpoint)).model
    assert train.has_folded_batch_norm(folded)
    assert not train.has_folded_batch_norm(fresh)


def test_name_without_a_file_is_left_to_ultralytics(tmp_path, monkeypatch):
    pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('YOLO_OFFLINE', 'true')
    with pytest.raises(
        train.TrainError, match=r'training .* failed: .*no_such_data\.yaml'
    ) as error:
        train.train(
            str(YOLOV8P), Path('no_such_data.yaml'), name='test', runs=tmp_path, device='cpu'
        )
    assert '\n' not in str(error.value)


def test_full_disk_is_one_line_and_the_old_weights_stay(squares, tmp_path, full_disk):
    pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    latest = tmp_path / 'latest.pt'
    latest.write_text('old')
    with pytest.raises(train.TrainError) as error:
        train.train(
            str(YOLOV8P), squares, name='test', epochs=1, image_size=64, batch=4, device='cpu',
            runs=full_disk, latest=latest, plots=False, workers=0,
        )  # fmt: skip
    assert '\n' not in str(error.value)
    assert latest.read_text() == 'old'
    assert os.listdir(full_disk) == []  # without a whole epoch there is nothing to go on from


def test_disk_that_fills_up_leaves_the_last_whole_epoch(squares, tmp_path, full_disk, monkeypatch):
    """The disk is full when the second epoch is to be kept; with more room the run goes on."""
    ultralytics = pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    subprocess.run(['mount', '-o', 'remount,size=64m', str(full_disk)], check=True)
    taken = full_disk / 'taken'
    real = ultralytics.YOLO

    def filling(*args, **options):
        network = real(*args, **options)

        def fill(trainer):
            if trainer.epoch == 1:
                taken.write_bytes(bytes(os.statvfs(full_disk).f_bavail * 4096))

        network.add_callback('on_train_epoch_start', fill)
        return network

    runs, latest = full_disk / 'runs', tmp_path / 'latest.pt'
    with monkeypatch.context() as patch:
        patch.setattr(ultralytics, 'YOLO', filling)
        with pytest.raises(
            train.TrainError, match=r'No space left.*--resume test goes on'
        ) as error:
            train.train(
                str(YOLOV8P), squares, name='test', epochs=2, image_size=64, batch=4,
                device='cpu', runs=runs, latest=latest, plots=False, workers=0,
            )  # fmt: skip
    assert '\n' not in str(error.value)
    assert sorted(os.listdir(runs / 'test' / 'weights')) == ['best.pt', 'last.pt']
    assert not latest.exists()
    taken.unlink()
    folder = train.resume('test', runs=runs, latest=latest)
    with (folder / 'results.csv').open() as file:
        assert [row['epoch'].strip() for row in csv.DictReader(file)] == ['1', '2']
    assert latest.is_file()
