"""Train a detector with Ultralytics: any of its models or YAMLs on any YOLO dataset.

    python model_tools/train.py --model model_tools/yolov8p.yaml \\
        --data datasets/person/data.yaml --epochs 60 --imgsz 416 --batch 16 --name person

leaves model_tools/runs/NAME/ (weights, results.csv, per_class.csv, args.yaml, plots of losses,
mAP, confusion matrix and labels) and copies the best weights to models/latest.pt. A YAML starts
from random weights, a .pt goes on from its own. The learning rate falls along a cosine; what is
kept is the weights' moving average; the seed makes a run repeatable on the same machine. How
images are varied stands in augmentations.py. Nothing is downloaded when model and data are files.

A run that was interrupted, or found the disk full, goes on from its last whole epoch:

    python model_tools/train.py --resume person

Nothing stays of a run that broke off before it had one.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import augmentations
import yaml
from command_line import command, write_whole
from evaluate_detection import IMAGE_SUFFIXES, label_path

from edge_perception.detection.errors import first_line
from edge_perception.media.atomic import temporary_beside
from edge_perception.types import EdgePerceptionError

REPOSITORY = Path(__file__).resolve().parent.parent
RUNS = REPOSITORY / 'model_tools' / 'runs'
LATEST = REPOSITORY / 'models' / 'latest.pt'


class TrainError(EdgePerceptionError):
    """Training cannot start, or broke off."""


def check_dataset(data: Path) -> None:
    """Look at a dataset before minutes are spent on it.

    Raises:
        TrainError: no YAML, no names, no images or no label file for any training image.
    """
    try:
        content = yaml.safe_load(data.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainError(f'cannot read the dataset {data}: {first_line(error)}') from error
    if not isinstance(content, dict) or not content.get('train') or not content.get('names'):
        raise TrainError(f'{data} is no YOLO dataset: it needs at least `train` and `names`')
    root = Path(content.get('path') or data.parent)
    root = root if root.is_absolute() else data.parent / root
    listed = content['train']
    for folder in [listed] if isinstance(listed, str) else listed:
        images_folder = root / folder
        if not images_folder.is_dir():
            continue  # a text file that lists images: ultralytics reads it
        images = [p for p in images_folder.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise TrainError(f'{data}: no images in {images_folder}')
        if not any(label_path(image).is_file() for image in images):
            raise TrainError(f'{data}: no labels for the images in {images_folder}')


def train(
    model: str,
    data: Path,
    *,
    name: str,
    epochs: int = 100,
    image_size: int = 640,
    batch: int = 16,
    optimizer: str = 'auto',
    patience: int = 100,
    multi_scale: bool = False,
    seed: int = 0,
    device: str = '',
    threads: int | None = None,
    cache: bool = False,
    runs: Path = RUNS,
    latest: Path = LATEST,
    **overrides: Any,
) -> Path:
    """Train and keep the best weights.

    Args:
        model: Ultralytics YAML (random weights) or .pt (its weights).
        data: the dataset's YAML, or the name of one of Ultralytics' own.
        name: of the run; a new folder in `runs`.
        epochs: rounds over the training images.
        image_size: side of the square input in pixels.
        batch: images that go through the network at once.
        optimizer: `auto` (AdamW for short runs), `AdamW` or `SGD`.
        patience: stop after so many epochs without a better score; 0 never does.
        multi_scale: vary the input size from batch to batch.
        seed: of all random numbers.
        device: as Ultralytics has it; empty picks a GPU where there is one.
        threads: CPU threads; None leaves it to PyTorch.
        cache: keep the images in memory.
        runs: folder of the runs.
        latest: where the best weights are copied to.
        overrides: further Ultralytics settings, before those of augmentations.py.

    Returns:
        The run's folder.

    Raises:
        TrainError: with one line that says what is wrong.
    """
    folder = runs / name
    if folder.exists():
        raise TrainError(
            f'{folder} exists: go on with --resume {name}, choose another --name or remove it'
        )
    # A bare name, such as coco8.yaml, is one of Ultralytics' own datasets, which it downloads.
    if data.is_file() or data.name != str(data):
        data = data.resolve()
        check_dataset(data)
    if not Path(model).is_file() and Path(model).name != model:
        raise TrainError(f'model not found: {model}')
    from_scratch = Path(model).suffix in ('.yaml', '.yml')
    settings: dict[str, Any] = {
        'data': str(data),
        'epochs': epochs,
        'imgsz': image_size,
        'batch': batch,
        # Weights that are good already are spoilt by a step a batch; gradients of several batches
        # are gathered for them, as Ultralytics does. From scratch that leaves too few steps.
        'nbs': batch if from_scratch else 64,
        'optimizer': optimizer,
        'patience': patience,
        'seed': seed,
        'deterministic': True,
        'cos_lr': True,
        'device': device or None,
        'cache': 'ram' if cache else False,
        'project': str(runs.resolve()),
        'name': name,
        'exist_ok': False,
        **augmentations.settings(epochs=epochs, multi_scale=multi_scale),
        **overrides,
    }
    try:
        return _run(model, settings, folder=folder, latest=latest, threads=threads)
    except BaseException:
        # What --resume cannot go on from would only be in the way of the next run of this name.
        if not (folder / 'weights' / 'last.pt').is_file():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def resume(
    name: str, *, threads: int | None = None, runs: Path = RUNS, latest: Path = LATEST
) -> Path:
    """Go on with a run that was interrupted, from its last whole epoch and with its settings.

    Raises:
        TrainError: there is no such run, or nothing is left of it to do.
    """
    folder = runs / name
    last = folder / 'weights' / 'last.pt'
    if not last.is_file():
        raise TrainError(f'nothing to go on from: {last} is not there')
    return _run(str(last), {'resume': True}, folder=folder, latest=latest, threads=threads)


def _run(
    model: str, settings: dict[str, Any], *, folder: Path, latest: Path, threads: int | None
) -> Path:
    """Let Ultralytics train, add the table of classes, copy the best weights."""
    if Path(model).is_file() and Path(settings.get('data', model)).is_file():
        os.environ.setdefault('YOLO_OFFLINE', 'true')
    os.environ.setdefault('YOLO_AUTOINSTALL', 'false')
    import torch
    from ultralytics import YOLO

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        network = YOLO(model, task='detect')
        if has_folded_batch_norm(network.model):
            network.add_callback('on_train_batch_start', keep_batch_norm)
        # On several GPUs Ultralytics starts processes that could not import this class.
        if ',' not in str(settings.get('device')):
            settings['trainer'] = _whole_epochs_trainer()
        network.train(**settings)
    except (
        AssertionError,
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        SyntaxError,
        KeyError,
    ) as error:
        text = f'training {model} failed: {first_line(error)}'
        if (folder / 'weights' / 'last.pt').is_file():
            text += f' (--resume {folder.name} goes on from the last whole epoch)'
        raise TrainError(text) from error
    best = folder / 'weights' / 'best.pt'
    if not best.is_file():
        raise TrainError(f'training ended without weights in {folder}')
    _write_class_table(network.trainer.validator.metrics, folder / 'per_class.csv')
    write_whole(latest, lambda beside: shutil.copyfile(best, beside))
    return folder


def _whole_epochs_trainer() -> type:
    """Ultralytics' trainer, whose files stay those of the last whole epoch on a full disk."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    class WholeEpochsTrainer(DetectionTrainer):
        last: Path
        best: Path

        def save_metrics(self, metrics: dict[str, Any]) -> None:
            self._table = self.csv.read_bytes() if self.csv.is_file() else b''
            try:
                super().save_metrics(metrics)
            except OSError:
                self.csv.write_bytes(self._table)
                raise

        def save_model(self) -> Any:
            places = self.last, self.best
            self.last, self.best = (temporary_beside(place) for place in places)
            try:
                saved = super().save_model()
                for made, place in zip((self.last, self.best), places, strict=True):
                    if made.is_file():
                        os.replace(made, place)
                return saved
            except OSError:
                self.csv.write_bytes(self._table)
                raise
            finally:
                self.last.unlink(missing_ok=True)
                self.best.unlink(missing_ok=True)
                self.last, self.best = places

    return WholeEpochsTrainer


def has_folded_batch_norm(network: Any) -> bool:
    """Whether batch normalisation was folded into the convolutions, as exports do.

    Such layers only add their bias. Were they trained as usual, they would normalise by the
    statistics of each batch, which the weights no longer expect.
    """
    import torch

    layers = [item for item in network.modules() if isinstance(item, torch.nn.BatchNorm2d)]
    return bool(layers) and all(
        not item.running_mean.any()
        and torch.allclose(item.running_var + item.eps, torch.ones(1), atol=1e-2)
        and torch.allclose(item.weight, torch.ones(1))
        and bool(item.bias.any())
        for item in layers
    )


def keep_batch_norm(trainer: Any) -> None:
    """Before each batch: leave the statistics of batch normalisation as they are."""
    import torch

    for item in trainer.model.modules():
        if isinstance(item, torch.nn.BatchNorm2d):
            item.eval()


def _write_class_table(metrics: Any, path: Path) -> None:
    """Scores of each class on the validation images, of the best weights."""
    rows = metrics.summary()

    def write(beside: Path) -> None:
        with beside.open('w', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ['Class'])
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)


@command(
    'train', stopped='models/latest.pt is as it was; a run with a whole epoch goes on by --resume'
)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', help='YAML (from scratch) or .pt (fine-tune)')
    parser.add_argument('--data', type=Path, help='YAML of a YOLO dataset')
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--imgsz', type=int, default=640, help='pixels')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--optimizer', default='auto', choices=('auto', 'AdamW', 'SGD'))
    parser.add_argument(
        '--patience', type=int, default=100, help='epochs without a better score (0: never stop)'
    )
    parser.add_argument('--multi-scale', action='store_true', help='vary the input size')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--name', help='of the run')
    parser.add_argument('--resume', metavar='NAME', help='go on with this run instead')
    parser.add_argument('--device', default='', help='cpu, 0, ... (default: a GPU if any)')
    parser.add_argument('--threads', type=int, help='CPU threads')
    parser.add_argument('--cache', action='store_true', help='keep the images in memory')
    options = parser.parse_args(arguments)
    if options.resume is None and None in (options.model, options.data, options.name):
        parser.error('--model, --data and --name are needed, or --resume NAME')
    if options.resume is not None:
        folder = resume(options.resume, threads=options.threads)
    else:
        folder = train(
            options.model,
            options.data,
            name=options.name,
            epochs=options.epochs,
            image_size=options.imgsz,
            batch=options.batch,
            optimizer=options.optimizer,
            patience=options.patience,
            multi_scale=options.multi_scale,
            seed=options.seed,
            device=options.device,
            threads=options.threads,
            cache=options.cache,
        )
    print(f'{folder}: best weights copied to {LATEST}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
