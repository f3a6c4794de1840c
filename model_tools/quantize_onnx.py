"""Make a model faster on the CPU with fewer bits, and keep it only if it stays accurate.

    python model_tools/quantize_onnx.py --model models/person_416.onnx --calibration street.mp4 \\
        --data datasets/person/data.yaml
    python model_tools/quantize_onnx.py --model models/person_416.onnx --calibration street.mp4 \\
        --source street.mp4 --mot-gt gt.txt --frames 400-794 --max-map-drop 0.5
    python model_tools/quantize_onnx.py --model models/person_416.onnx --to bf16 \\
        --data datasets/person/data.yaml

writes models/person_416_int8.onnx (or _fp16, _bf16). Calibration images come from a video, a bag
or a folder and should look like what the camera will see. Then both models are scored on the
labels with the nodes' own Detector: one that loses more than --max-map-drop points of mAP50-95 is
refused. INT8 weights have seven bits where the processor has no VNNI instructions: make the file
on the kind of machine it is for. BF16 changes no weights: it allows OpenVINO to compute in it,
where the processor can. FP16 halves the file, for GPUs; most CPUs are slower with it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import calibration
import evaluate_detection
import half_precision
from command_line import command, folder_beside
from rich.console import Console

from edge_perception.detection import Detector
from edge_perception.detection.backends.onnx import OnnxBackend
from edge_perception.detection.decode import check_task
from edge_perception.types import EdgePerceptionError

PRECISIONS = ('int8', 'fp16', 'bf16')
Scorer = Callable[[Path], float]


class QuantizeError(EdgePerceptionError):
    """The model cannot be quantised, or loses too much by it."""


@dataclass(frozen=True)
class Outcome:
    """Accuracy before and after, as mAP50-95 in percent."""

    before: float
    after: float

    @property
    def drop(self) -> float:
        """Points lost; negative when the model became better."""
        return self.before - self.after


def quantize_onnx(
    model: Path,
    out: Path,
    score: Scorer,
    *,
    to: str = 'int8',
    source_uri: str | None = None,
    count: int = 100,
    method: str = 'minmax',
    max_map_drop: float = 1.0,
) -> Outcome:
    """Quantise, score both, and only then put the file in its place.

    Args:
        model: FP32 ONNX file of a detector.
        out: file to write.
        score: mAP50-95 in percent of a model file.
        to: one of PRECISIONS.
        source_uri: calibration images, for INT8.
        count: how many of them at most.
        method: one of calibration.METHODS.
        max_map_drop: points of mAP50-95 that may be lost.

    Returns:
        What was lost.

    Raises:
        QuantizeError: it loses more.
        OutputError: the file cannot be written.
        EdgePerceptionError: a model, labels or images cannot be used.
    """
    if out.suffix != '.onnx':
        raise QuantizeError(f'{out}: the name must end in .onnx')
    with Detector('onnx', model_path=model, device='cpu') as detector:
        image_hw = detector.image_hw
    if to == 'int8':
        if source_uri is None:
            raise QuantizeError('INT8 needs --calibration')
        images = calibration.read_images(source_uri, count)
        blobs = calibration.network_inputs(images, image_hw)
    before = score(model)
    with folder_beside(out, '.quantize-') as folder:
        made = folder / 'model.onnx'
        if to == 'int8':
            calibration.quantize(model, made, blobs, method=method)
        elif to == 'fp16':
            half_precision.to_half(model, made)
        _finish(model, made, precision=to)
        outcome = Outcome(before, score(made))
        if not outcome.drop <= max_map_drop:
            raise QuantizeError(
                f'{to} loses {outcome.drop:.2f} points of mAP50-95 ({outcome.before:.2f} '
                f'before, {outcome.after:.2f} after), more than {max_map_drop:g}: '
                f'no file was written'
            )
        os.replace(made, out)
    return outcome


def _finish(model: Path, made: Path, *, precision: str) -> None:
    """Give the new file the metadata of the old one and its precision."""
    import onnx

    result = onnx.load(made if made.is_file() else model)
    with OnnxBackend(model, device='cpu') as backend:
        check_task(backend.metadata)
        onnx.helper.set_model_props(result, {**backend.metadata, 'precision': precision})
    onnx.save(result, made)


def scorer(options: argparse.Namespace, backend: str) -> Scorer:
    """The judgement that the command line describes."""

    def score(model: Path) -> float:
        with Detector(
            backend,
            model_path=model,
            image_size=options.imgsz,
            score_threshold=evaluate_detection.LEAST_SCORE,
            iou_threshold=evaluate_detection.NMS_IOU,
            max_detections=evaluate_detection.MAX_DETECTIONS,
        ) as detector:
            names, images, _ = evaluate_detection.labelled_images(options)
            return float(evaluate_detection.evaluate(detector, images, names)['mAP50-95'])

    return score


@command('quantize_onnx')
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', required=True, type=Path, help='FP32 .onnx file')
    parser.add_argument('--out', type=Path, help='default: the model with _int8, _fp16 or _bf16')
    parser.add_argument('--to', choices=PRECISIONS, default='int8')
    parser.add_argument('--calibration', help='video, bag or folder of images, for INT8')
    parser.add_argument('--count', type=int, default=100, help='of calibration images')
    parser.add_argument('--method', choices=calibration.METHODS, default='minmax')
    parser.add_argument('--imgsz', type=int, help='input size in pixels of the scores')
    parser.add_argument(
        '--max-map-drop', type=float, default=1.0, help='points of mAP50-95 that may be lost'
    )
    evaluate_detection.add_label_arguments(parser)
    options = parser.parse_args(arguments)
    out = options.out or options.model.with_name(f'{options.model.stem}_{options.to}.onnx')
    console = Console(stderr=True)
    with console.status(f'{options.model} to {options.to}'):
        outcome = quantize_onnx(
            options.model,
            out,
            scorer(options, 'openvino' if options.to == 'bf16' else 'onnx'),
            to=options.to,
            source_uri=options.calibration,
            count=options.count,
            method=options.method,
            max_map_drop=options.max_map_drop,
        )
    sizes: list[Any] = [path.stat().st_size / 1e6 for path in (options.model, out)]
    print(
        f'{out}: {sizes[1]:.1f} MB (was {sizes[0]:.1f}); mAP50-95 {outcome.after:.2f} '
        f'(was {outcome.before:.2f})'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
