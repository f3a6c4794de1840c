"""Export a checkpoint to ONNX, and keep the file only if it computes what PyTorch computes.

    python model_tools/export_onnx.py --model models/latest.pt --out models/person_416.onnx

Batch, height and width of the result are dynamic; class names, stride, task and input size stand
in its metadata. Both engines then see the same images in several shapes: where a box differs by
more than 0.02 px or a score by more than 1e-4, no file is left.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_perception.detection.backends.onnx import OnnxBackend
from edge_perception.detection.backends.pytorch import PyTorchBackend
from edge_perception.detection.decode import check_task
from edge_perception.detection.errors import first_line
from edge_perception.types import EdgePerceptionError

BOX_TOLERANCE_PX = 0.02
SCORE_TOLERANCE = 1e-4
PARITY_SHAPES = (  # batch, height, width
    (1, 320, 320),
    (1, 416, 416),
    (2, 320, 416),
    (1, 640, 640),
    (3, 480, 640),
    (1, 736, 1280),
    (4, 1280, 1280),
)
LOWEST_OPSET = 12


class ExportError(EdgePerceptionError):
    """The model cannot be exported, or the export computes something else."""


@dataclass(frozen=True)
class Parity:
    """Largest differences between two engines.

    Attributes:
        box_px: of a box coordinate, pixels.
        score: of a class score.
        shapes: how many input shapes were compared.
    """

    box_px: float
    score: float
    shapes: int


def export_onnx(
    model: Path,
    out: Path,
    *,
    image_size: int | None = None,
    opset: int = 17,
    shapes: Sequence[tuple[int, int, int]] | None = None,
) -> Parity:
    """Export, simplify, compare, and only then put the file in its place.

    Args:
        model: Ultralytics checkpoint (.pt) of a detector.
        out: the .onnx file to write.
        image_size: input size in pixels that the metadata recommends; None: the checkpoint's.
        opset: ONNX operator set, at least LOWEST_OPSET.
        shapes: batch, height and width of the inputs that are compared; None: PARITY_SHAPES.

    Returns:
        How well the two agree.

    Raises:
        ExportError: a wrong argument, or the export differs from PyTorch.
        DetectionError: the checkpoint cannot be read, or is no detector.
    """
    if opset < LOWEST_OPSET:
        raise ExportError(f'opset {opset} is too old: at least {LOWEST_OPSET}')
    if out.suffix != '.onnx':
        raise ExportError(f'{out}: the name must end in .onnx')
    with PyTorchBackend(model, device='cpu') as reference:
        check_task(reference.metadata)
        stride = int(reference.metadata['stride'])
    if image_size is not None and (image_size <= 0 or image_size % stride):
        raise ExportError(f'--imgsz {image_size} is no multiple of the stride {stride}')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.export-', dir=out.parent) as folder:
            copy = Path(folder) / 'model.pt'
            shutil.copyfile(model, copy)
            exported = _export(copy, image_size=image_size, opset=opset)
            _tidy(exported, title=model.stem)
            parity = compare(model, exported, shapes or PARITY_SHAPES)
            if parity.box_px > BOX_TOLERANCE_PX or parity.score > SCORE_TOLERANCE:
                raise ExportError(
                    f'the export differs from PyTorch by {parity.box_px:.4f} px and '
                    f'{parity.score:.1e} in score (at most {BOX_TOLERANCE_PX} px and '
                    f'{SCORE_TOLERANCE:.0e}): no file was written'
                )
            os.replace(exported, out)
    except OSError as error:
        raise ExportError(f'cannot write {out}: {error}') from error
    return parity


def compare(checkpoint: Path, exported: Path, shapes: Sequence[tuple[int, int, int]]) -> Parity:
    """Run both files on the same images and take the largest differences."""
    box_px = score = 0.0
    count = 0
    with (
        PyTorchBackend(checkpoint, device='cpu') as reference,
        OnnxBackend(exported, device='cpu') as candidate,
    ):
        for blob in parity_blobs(shapes):
            expected, actual = reference.infer(blob)[0], candidate.infer(blob)[0]
            if expected.shape != actual.shape:
                raise ExportError(
                    f'the export puts out {actual.shape} instead of {expected.shape} '
                    f'for an input of {blob.shape}: no file was written'
                )
            difference = np.abs(expected - actual)  # (B, 4+nc, N), or end-to-end (B, K, 6)
            if difference.shape[2] == 6 and reference.metadata['end2end'] == 'True':
                difference = difference.transpose(0, 2, 1)
            # NaN must not pass for equal, which max() of Python could let happen.
            box_px = float(np.maximum(box_px, difference[:, :4].max()))
            score = float(np.maximum(score, difference[:, 4:].max()))
            if not np.isfinite(box_px + score):
                raise ExportError(f'NaN for an input of {blob.shape}: no file was written')
            count += 1
    return Parity(box_px, score, count)


def parity_blobs(shapes: Sequence[tuple[int, int, int]]) -> Iterator[NDArray[np.float32]]:
    """Repeatable images of coarse and fine structure, (B, 3, H, W) float32 in [0, 1]."""
    random = np.random.default_rng(0)
    for batch, height, width in shapes:
        blob = np.empty((batch, 3, height, width), np.float32)
        for plane in blob.reshape(-1, height, width):
            coarse = random.random((height // 32, width // 32), np.float32)
            cv2.resize(coarse, (width, height), dst=plane, interpolation=cv2.INTER_CUBIC)
            plane += 0.2 * random.standard_normal((height, width), np.float32)
        yield np.clip(blob, 0, 1, out=blob)


def _export(checkpoint: Path, *, image_size: int | None, opset: int) -> Path:
    """Let ultralytics write the .onnx beside the checkpoint."""
    from ultralytics import YOLO

    # Its messages name the temporary file as the result.
    logging.getLogger('ultralytics').setLevel(logging.WARNING)
    try:
        network = YOLO(str(checkpoint))
        size = image_size or network.model.args.get('imgsz', 640)
        written = network.export(
            format='onnx',
            dynamic=True,
            simplify=True,
            opset=opset,
            imgsz=size,
            device='cpu',
            verbose=False,
        )
    except (RuntimeError, ValueError, TypeError, KeyError, ImportError) as error:
        raise ExportError(f'ultralytics cannot export the model: {first_line(error)}') from error
    return Path(written)


def _tidy(path: Path, *, title: str) -> None:
    """Take paths of this machine out of the file: its description names the training data's."""
    import onnx

    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == 'description':
            entry.value = f'{title}, detector trained and exported with Ultralytics'
    for node in model.graph.node:
        node.ClearField('doc_string')
        del node.metadata_props[:]
    onnx.save(model, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', required=True, type=Path, help='checkpoint (.pt)')
    parser.add_argument('--out', type=Path, help='default: the checkpoint with .onnx at its end')
    parser.add_argument('--imgsz', type=int, help='recommended input size in pixels')
    parser.add_argument('--opset', type=int, default=17, help=f'at least {LOWEST_OPSET}')
    options = parser.parse_args(arguments)
    out = options.out or options.model.with_suffix('.onnx')
    # Nothing is to be downloaded or installed for an export.
    os.environ.setdefault('YOLO_OFFLINE', 'true')
    os.environ.setdefault('YOLO_AUTOINSTALL', 'false')
    try:
        parity = export_onnx(options.model, out, image_size=options.imgsz, opset=options.opset)
    except EdgePerceptionError as error:
        print(f'export_onnx: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('export_onnx: stopped, no file was written', file=sys.stderr)
        return 130
    print(
        f'{out}: {out.stat().st_size / 1e6:.1f} MB; over {parity.shapes} input shapes it differs '
        f'from PyTorch by at most {parity.box_px:.1e} px and {parity.score:.1e} in score'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
