"""Label images with a detector: any model and any video, folder or bag become a YOLO dataset.

    python model_tools/autolabel.py --model yolov8n.pt --source street.mp4 --out datasets/street \\
        --classes person vehicle=car,truck,bus --imgsz 960 1280 --frames 0-399 --stride 3

leaves

    datasets/street/data.yaml
    datasets/street/images/train/street/000000.jpg ...
    datasets/street/labels/train/street/000000.txt ...   class cx cy w h, in parts of the image

Further runs with the same --out add further folders beside `street`. With several --imgsz each
frame is searched at every size and the boxes are united by NMS: large sizes find small objects.
With --tiles each frame is searched in overlapping parts too, for objects of a few pixels.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from command_line import command, progress
from numpy.typing import NDArray

from edge_perception.detection import Detector
from edge_perception.detection.nms import non_maximum_suppression
from edge_perception.media import open_source
from edge_perception.types import Detections, EdgePerceptionError


class AutolabelError(EdgePerceptionError):
    """Labels cannot be made as asked."""


@dataclass(frozen=True)
class ClassMap:
    """Which classes of the teacher become which classes of the dataset.

    Attributes:
        names: class names of the dataset.
        dataset_id: class id in the dataset by the teacher's class name.
    """

    names: tuple[str, ...]
    dataset_id: dict[str, int]

    @classmethod
    def parse(cls, items: Sequence[str]) -> ClassMap:
        """Read `NAME` (kept as it is) and `NEW=OLD,OLD` (several become one).

        Raises:
            AutolabelError: a class is named twice.
        """
        names: list[str] = []
        dataset_id: dict[str, int] = {}
        for item in items:
            new, _, old = item.partition('=')
            sources = old.split(',') if old else [new]
            if new in names or any(source in dataset_id for source in sources):
                raise AutolabelError(f'--classes names a class twice: {item}')
            dataset_id.update(dict.fromkeys(sources, len(names)))
            names.append(new)
        return cls(tuple(names), dataset_id)


class Teacher:
    """Detectors of one model at several input sizes, whose boxes are united.

    Args:
        model_path: the model.
        backend: a backend's name or `auto`.
        image_sizes: input sizes; none for the model's own.
        classes: the teacher's classes that are wanted; none for all.
        score_threshold: boxes need this score.
        iou_threshold: boxes of a class that overlap more are one.
        tiles: also search tiles x tiles overlapping parts of each frame; 1 does not.
        threads: CPU threads of the engine.
    """

    def __init__(
        self,
        model_path: str,
        *,
        backend: str = 'auto',
        image_sizes: Sequence[int] = (),
        classes: Sequence[str] = (),
        score_threshold: float = 0.3,
        iou_threshold: float = 0.6,
        tiles: int = 1,
        threads: int | None = None,
    ) -> None:
        self._iou_threshold = iou_threshold
        self._tiles = tiles
        self._detectors = [
            Detector(
                backend,
                model_path=model_path,
                score_threshold=score_threshold,
                iou_threshold=iou_threshold,
                classes=classes,
                image_size=image_size,
                threads=threads,
            )
            for image_size in (image_sizes or (None,))
        ]
        self.names = self._detectors[0].names
        self.description = self._detectors[0].reason

    def __call__(self, image: NDArray[np.uint8]) -> Detections:
        """Everything that any size, and any part of the image, shows."""
        found = [detector(image) for detector in self._detectors]
        found += [
            part
            for detector in self._detectors
            for tile in _tiles_xyxy(image.shape[:2], self._tiles)
            for part in [_detect_in_tile(detector, image, tile)]
        ]
        if len(found) == 1:
            return found[0]
        together = Detections.concatenate(found)
        kept = non_maximum_suppression(
            together.xyxy, together.score, together.class_id, iou_threshold=self._iou_threshold
        )
        return together[kept]

    def close(self) -> None:
        """Free the models."""
        for detector in self._detectors:
            detector.close()


def _tiles_xyxy(image_hw: tuple[int, int], tiles: int) -> Iterator[tuple[int, int, int, int]]:
    """Parts of an image, `tiles` along each side, each a quarter longer than its share."""
    if tiles < 2:
        return
    height, width = image_hw
    tile_h = min(height, int(height / tiles * 1.25))
    tile_w = min(width, int(width / tiles * 1.25))
    for top in np.linspace(0, height - tile_h, tiles).astype(int):
        for left in np.linspace(0, width - tile_w, tiles).astype(int):
            yield int(left), int(top), int(left) + tile_w, int(top) + tile_h


def _detect_in_tile(
    detector: Detector, image: NDArray[np.uint8], tile_xyxy: tuple[int, int, int, int]
) -> Detections:
    """What a detector finds in one part, without the boxes that the part's inner edges cut."""
    left, top, right, bottom = tile_xyxy
    found = detector(np.ascontiguousarray(image[top:bottom, left:right]))
    height, width = image.shape[:2]
    margin = 2  # pixels
    cut = (
        ((found.xyxy[:, 0] < margin) & (left > 0))
        | ((found.xyxy[:, 1] < margin) & (top > 0))
        | ((found.xyxy[:, 2] > right - left - margin) & (right < width))
        | ((found.xyxy[:, 3] > bottom - top - margin) & (bottom < height))
    )
    whole = found[~cut]
    offset = np.array([left, top, left, top], np.float32)
    return Detections(xyxy=whole.xyxy + offset, score=whole.score, class_id=whole.class_id)


def label_lines(
    found: Detections, image_hw: tuple[int, int], names: dict[int, str], classes: ClassMap
) -> list[str]:
    """Detections as lines of a YOLO label file: class, then cx cy w h in parts of the image."""
    height, width = image_hw
    lines = []
    for (left, top, right, bottom), class_id in zip(found.xyxy, found.class_id, strict=True):
        values = (
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        )
        number = classes.dataset_id[names[int(class_id)]]
        lines.append(f'{number} ' + ' '.join(f'{value:.6f}' for value in values))
    return lines


def label_source(
    source_uri: str,
    teacher: Teacher,
    classes: ClassMap,
    out: Path,
    *,
    name: str,
    split: str = 'train',
    frames: range | None = None,
    stride: int = 1,
) -> tuple[int, int]:
    """Label one source and add it to the dataset: complete, or not at all.

    Args:
        source_uri: what `open_source` opens.
        teacher: who labels.
        classes: which classes become which.
        out: the dataset's folder; made when absent.
        name: the subfolder, which must be new.
        split: `train` or `val`.
        frames: frame numbers from 0 that are looked at; None for all.
        stride: every how many of them.

    Returns:
        Number of images and of boxes.

    Raises:
        AutolabelError: the subfolder exists, the dataset has other classes, or no frame came.
        MediaError: the source cannot be read.
    """
    targets = {kind: out / kind / split / name for kind in ('images', 'labels')}
    for target in targets.values():
        if target.exists():
            raise AutolabelError(f'{target} exists: remove it or choose another --name')
    _check_classes(out / 'data.yaml', classes)
    image_count = box_count = 0
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(_folder_beside(out))
        for kind in targets:
            (work / kind).mkdir()
        with open_source(source_uri) as source:
            total = source.frame_count
            wanted = frames or range(total if total is not None else sys.maxsize)
            if total is not None:
                total = min(total, wanted.stop)
            shown = stack.enter_context(progress(source, name, total))
            for index, frame in enumerate(shown):
                if index >= wanted.stop:
                    break
                if index not in wanted or (index - wanted.start) % stride:
                    continue
                found = teacher(frame.image)
                lines = label_lines(found, frame.image.shape[:2], teacher.names, classes)
                stem = f'{index:06d}'
                # OpenCV's own writer leaves half a file on a full disk, and calls it written.
                _, jpeg = cv2.imencode('.jpg', frame.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
                (work / 'images' / f'{stem}.jpg').write_bytes(jpeg.tobytes())
                text = '\n'.join(lines) + '\n' if lines else ''
                (work / 'labels' / f'{stem}.txt').write_text(text)
                image_count += 1
                box_count += len(lines)
        if not image_count:
            raise AutolabelError(f'{source_uri}: none of the wanted frames is in it')
        _write_yaml(work / 'data.yaml', out, classes, split)
        # Labels first: images without labels would count as images without objects.
        for kind in ('labels', 'images'):
            targets[kind].parent.mkdir(parents=True, exist_ok=True)
            os.replace(work / kind, targets[kind])
        os.replace(work / 'data.yaml', out / 'data.yaml')
    return image_count, box_count


@contextlib.contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """A folder in the dataset for what is not whole yet; nothing stays of it.

    Raises:
        AutolabelError: the disk cannot be written, or is full.
    """
    was_there = out.is_dir()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.autolabel-', dir=out) as work:
            yield Path(work)
    except OSError as error:
        raise AutolabelError(f'cannot write the dataset {out}: {error}') from error
    finally:
        if not was_there:
            with contextlib.suppress(OSError):  # not empty: it is a dataset now
                out.rmdir()


def _check_classes(yaml_path: Path, classes: ClassMap) -> None:
    """Raise AutolabelError when the dataset has other classes already."""
    if yaml_path.is_file():
        names = yaml.safe_load(yaml_path.read_text()).get('names')
        if names != dict(enumerate(classes.names)):
            raise AutolabelError(f'{yaml_path} has the classes {names}, not {classes.names}')


def _write_yaml(path: Path, out: Path, classes: ClassMap, split: str) -> None:
    """Write the YAML of a dataset to which a split is added; without val, train stands in."""
    has_val = split == 'val' or (out / 'images' / 'val').is_dir()
    content = {
        'train': 'images/train',
        'val': 'images/val' if has_val else 'images/train',
        'names': dict(enumerate(classes.names)),
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def parse_frames(text: str) -> range:
    """`0-399` (both ends included) or `400-` as a range of frame numbers."""
    first, dash, last = text.partition('-')
    if not first.isdecimal() or (last and not last.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text!r} is no range such as 0-399')
    stop = int(last) + 1 if last else sys.maxsize if dash else int(first) + 1
    if stop <= int(first):
        raise argparse.ArgumentTypeError(f'{text!r} is empty')
    return range(int(first), stop)


@command('autolabel', stopped='nothing was added')
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', required=True, help='the teacher')
    parser.add_argument('--backend', default='auto')
    parser.add_argument('--source', required=True, help='video, folder of images or bag')
    parser.add_argument('--out', required=True, type=Path, help='folder of the dataset')
    parser.add_argument('--name', help='subfolder for this source (default: from its name)')
    parser.add_argument('--split', default='train', choices=('train', 'val'))
    parser.add_argument(
        '--classes', nargs='+', help='NAME or NEW=OLD,OLD (default: every class of the teacher)'
    )
    parser.add_argument('--imgsz', type=int, nargs='+', default=(), help='input sizes in pixels')
    parser.add_argument('--score', type=float, default=0.3, help='least score of a label')
    parser.add_argument('--iou', type=float, default=0.6, help='IoU above which boxes are one')
    parser.add_argument('--frames', type=parse_frames, help='such as 0-399, both included')
    parser.add_argument('--stride', type=int, default=1, help='every how many frames')
    parser.add_argument('--tiles', type=int, default=1, help='parts along each side of a frame')
    parser.add_argument('--threads', type=int, help='CPU threads')
    options = parser.parse_args(arguments)
    classes = ClassMap.parse(options.classes) if options.classes else None
    teacher = Teacher(
        options.model,
        backend=options.backend,
        image_sizes=options.imgsz,
        classes=list(classes.dataset_id) if classes else (),
        score_threshold=options.score,
        iou_threshold=options.iou,
        tiles=options.tiles,
        threads=options.threads,
    )
    try:
        if classes is None:
            classes = ClassMap.parse([teacher.names[key] for key in sorted(teacher.names)])
        image_count, box_count = label_source(
            options.source,
            teacher,
            classes,
            options.out,
            name=options.name or Path(options.source).stem,
            split=options.split,
            frames=options.frames,
            stride=options.stride,
        )
    finally:
        teacher.close()
    print(f'{image_count} images with {box_count} boxes added to {options.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
