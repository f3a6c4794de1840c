"""Score a detector on labelled images: COCO's average precision, through the nodes' own Detector.

    python model_tools/evaluate_detection.py --model models/person_416.onnx \\
        --data datasets/person/data.yaml --split val --json scores.json
    python model_tools/evaluate_detection.py --model yolov8n.onnx \\
        --source street.mp4 --mot-gt gt.txt --frames 400-794

Labels are a YOLO dataset, or a video with ground truth in MOTChallenge's text format, whose
objects are all of one class. Classes are matched by name: those of the labels count, the model's
others do not. The scores are pycocotools' (Lin et al., "Microsoft COCO", arXiv:1405.0312), in
percent: mAP50-95 is the mean over the IoU thresholds 0.50, 0.55 ... 0.95.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from autolabel import parse_frames
from command_line import command, progress, write_whole
from numpy.typing import NDArray

from edge_perception.detection import Detector
from edge_perception.detection.labels import load_labels
from edge_perception.media import open_source
from edge_perception.media.mot import read_mot
from edge_perception.types import Detections, EdgePerceptionError

IMAGE_SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}
MAX_DETECTIONS = 100
"""COCO's own limit for an image."""
LEAST_SCORE = 0.01
"""Precision is taken at every score from here on."""
NMS_IOU = 0.7


class EvaluationError(EdgePerceptionError):
    """The labels cannot be used, or fit the model in no class."""


@dataclass(frozen=True)
class LabelledImage:
    """An image and the objects on it.

    Attributes:
        image: (h, w, 3) uint8 BGR.
        objects: ground truth; their scores mean nothing.
    """

    image: NDArray[np.uint8]
    objects: Detections


def yolo_dataset(data: Path, split: str) -> tuple[dict[int, str], list[Path]]:
    """Class names and image files of one split of a YOLO dataset.

    Raises:
        EvaluationError: the split is not there or has no images.
        LabelsError: the YAML cannot be read or has no names.
    """
    names = load_labels(data)
    content = yaml.safe_load(data.read_text(encoding='utf-8'))
    root = data.parent / (content.get('path') or '.')
    folders = content.get(split)
    if not folders:
        raise EvaluationError(f'{data} has no split {split!r}')
    images = [
        path
        for folder in ([folders] if isinstance(folders, str) else folders)
        for path in sorted((root / folder).rglob('*'))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not images:
        raise EvaluationError(f'{data}: no images of the split {split!r}')
    return names, images


def label_path(image: Path) -> Path:
    """The label file of an image: its last folder `images` becomes `labels`, as YOLO has it."""
    parts = list(image.parts)
    if 'images' in parts:
        parts[len(parts) - 1 - parts[::-1].index('images')] = 'labels'
    return Path(*parts).with_suffix('.txt')


def read_yolo(images: Sequence[Path]) -> Iterator[LabelledImage]:
    """Images with the objects of their label files; without such a file, none.

    Raises:
        EvaluationError: an image or a label file cannot be read.
    """
    for path in images:
        image = cv2.imread(str(path))
        if image is None:
            raise EvaluationError(f'cannot read the image {path}')
        pixels = np.asarray(image, np.uint8)
        label = label_path(path)
        lines = label.read_text().split('\n') if label.is_file() else []
        try:
            rows = np.array([line.split() for line in lines if line.strip()], np.float64)
            rows = rows.reshape(-1, 5)
        except ValueError as error:
            raise EvaluationError(f'{label}: expected lines of class cx cy w h') from error
        height, width = pixels.shape[:2]
        centre, half = rows[:, 1:3], rows[:, 3:5] / 2
        boxes = np.concatenate((centre - half, centre + half), axis=1)
        boxes *= [width, height, width, height]
        yield LabelledImage(pixels, _objects(boxes, rows[:, 0]))


def read_mot_video(
    source_uri: str, gt: Path, frames: range, stride: int
) -> Iterator[LabelledImage]:
    """Frames of a video with MOTChallenge ground truth, whose frame 1 is the video's first.

    Raises:
        MediaError: one of the two cannot be read.
    """
    table = read_mot(gt)
    counts = table.score > 0  # 0 marks objects that are not to be counted
    with open_source(source_uri) as source:
        for index, frame in enumerate(source):
            if index >= frames.stop:
                break
            if index in frames and (index - frames.start) % stride == 0:
                rows = np.flatnonzero((table.frame == index + 1) & counts)
                yield LabelledImage(
                    frame.image.copy(), _objects(table.xyxy[rows], np.zeros(len(rows)))
                )


def _objects(boxes_xyxy: NDArray[Any], class_ids: NDArray[Any]) -> Detections:
    return Detections(
        xyxy=boxes_xyxy.astype(np.float32),
        score=np.ones(len(class_ids), np.float32),
        class_id=class_ids.astype(np.int32),
    )


def evaluate(
    detector: Detector, images: Iterator[LabelledImage], names: Mapping[int, str]
) -> dict[str, Any]:
    """Detect on every image and score the results.

    Args:
        detector: its score threshold should be low: precision is taken at every score.
        images: with ground truth.
        names: class names of the ground truth.

    Returns:
        mAP50-95, mAP50, mAP75 and AR100 in percent, mAP by class, counts of images and objects.

    Raises:
        EvaluationError: model and labels share no class, or there are no objects.
    """
    model_ids = {name: class_id for class_id, name in detector.names.items()}
    shared = {class_id: model_ids[name] for class_id, name in names.items() if name in model_ids}
    if not shared:
        raise EvaluationError(
            f'model and labels share no class: {", ".join(detector.names.values())} '
            f'and {", ".join(names.values())}'
        )
    label_ids = {model_id: class_id for class_id, model_id in shared.items()}
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    count = 0
    for count, labelled in enumerate(images, start=1):
        for box, class_id in zip(
            labelled.objects.xyxy.tolist(), labelled.objects.class_id.tolist(), strict=True
        ):
            if class_id in shared:
                annotation = _entry(count, class_id, box)
                annotation |= {'id': len(truth) + 1, 'iscrowd': 0}
                annotation['area'] = annotation['bbox'][2] * annotation['bbox'][3]
                truth.append(annotation)
        result = detector(labelled.image)
        for box, class_id, score in zip(
            result.xyxy.tolist(), result.class_id.tolist(), result.score.tolist(), strict=True
        ):
            if class_id in label_ids:
                found.append({**_entry(count, label_ids[class_id], box), 'score': score})
    if not truth:
        raise EvaluationError('there is no object on any of the images')
    scores = _coco_scores(truth, found, {key: names[key] for key in shared}, count)
    return {**scores, 'images': count, 'objects': len(truth)}


def _entry(image_id: int, class_id: int, box_xyxy: Sequence[float]) -> dict[str, Any]:
    left, top, right, bottom = box_xyxy
    return {
        'image_id': image_id,
        'category_id': class_id,
        'bbox': [left, top, right - left, bottom - top],
    }


def _coco_scores(
    truth: list[dict[str, Any]],
    found: list[dict[str, Any]],
    names: Mapping[int, str],
    image_count: int,
) -> dict[str, Any]:
    """pycocotools' figures in percent."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # pycocotools talks on standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = {
            'info': {},
            'images': [{'id': number + 1} for number in range(image_count)],
            'annotations': truth,
            'categories': [{'id': key, 'name': name} for key, name in names.items()],
        }
        ground_truth.createIndex()
        # loadRes refuses an empty list, which a blind model leaves.
        results = ground_truth.loadRes(found) if found else COCO()
        if not found:
            results.dataset = {**ground_truth.dataset, 'annotations': []}
            results.createIndex()
        evaluation = COCOeval(ground_truth, results, 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # (IoU threshold, recall, class, area range, detection limit); -1 where there is no object.
    precision = evaluation.eval['precision'][:, :, :, 0, 2]
    by_class = {}
    for index, class_id in enumerate(evaluation.params.catIds):
        values = precision[:, :, index]
        by_class[names[class_id]] = 100 * float(values.mean()) if (values > -1).any() else None
    stats = 100 * evaluation.stats
    return {
        'mAP50-95': float(stats[0]),
        'mAP50': float(stats[1]),
        'mAP75': float(stats[2]),
        'AR100': float(stats[8]),
        'mAP50-95_by_class': by_class,
    }


def add_label_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The options that say which labelled images to score on; read by `labelled_images`."""
    labels = parser.add_mutually_exclusive_group(required=required)
    labels.add_argument('--data', type=Path, help='YAML of a YOLO dataset')
    labels.add_argument('--mot-gt', type=Path, help='gt.txt of MOTChallenge, with --source')
    parser.add_argument('--split', default='val', help='of the dataset')
    parser.add_argument('--source', help='video of the ground truth')
    parser.add_argument('--class-name', default='person', help='of the ground truth')
    parser.add_argument('--frames', type=parse_frames, default=range(sys.maxsize))
    parser.add_argument('--stride', type=int, default=1, help='every how many of these frames')


def labelled_images(
    options: argparse.Namespace,
) -> tuple[dict[int, str], Iterator[LabelledImage], int | None]:
    """Class names, images, and how many they are, None when that is not known.

    Raises:
        EvaluationError: the labels cannot be used.
    """
    if options.data:
        names, paths = yolo_dataset(options.data, options.split)
        return names, read_yolo(paths), len(paths)
    if not options.source:
        raise EvaluationError('--mot-gt needs --source')
    images = read_mot_video(options.source, options.mot_gt, options.frames, options.stride)
    return {0: options.class_name}, images, None


@command('evaluate_detection')
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', required=True)
    parser.add_argument('--backend', default='auto')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--imgsz', type=int, help='input size in pixels')
    add_label_arguments(parser)
    parser.add_argument('--score', type=float, default=LEAST_SCORE, help='least score that counts')
    parser.add_argument('--iou', type=float, default=NMS_IOU, help='of the NMS')
    parser.add_argument('--threads', type=int, help='CPU threads of the engine')
    parser.add_argument('--json', type=Path, help='file for the scores')
    options = parser.parse_args(arguments)
    names, images, total = labelled_images(options)
    with Detector(
        options.backend,
        model_path=options.model,
        device=options.device,
        image_size=options.imgsz,
        score_threshold=options.score,
        iou_threshold=options.iou,
        max_detections=MAX_DETECTIONS,
        threads=options.threads,
    ) as detector:
        with progress(images, 'evaluate', total) as shown:
            scores = evaluate(detector, shown, names)
        scores = {
            'model': Path(options.model).name,
            'backend': detector.backend_name,
            'image_hw': list(detector.image_hw),
            **scores,
        }
    text = json.dumps(scores, indent=2)
    print(text)
    if options.json:
        write_whole(options.json, lambda path: path.write_text(text + '\n'))
    return 0


if __name__ == '__main__':
    sys.exit(main())
