"""Export a checkpoint to ONNX, and keep the file only if it computes what PyTorch computes.

    python model_tools/export_onnx.py --model models/latest.pt --out models/person_416.onnx

Batch, height and width of the result are dynamic; class names, stride, task and input size stand
in its metadata. Both engines then see the same images in several shapes: where a box differs by
more than 0.02 px or a score by more than 1e-4, no file is left.

    python model_tools/export_onnx.py --model models/latest.pt --uint8-input --end2end

takes frames as they are (NHWC, 0..255) and puts out boxes without duplicates (B, 300, 6): for
programs other than this one, whose preprocessing and NMS are faster outside the graph. With --half
weights and features are FP16, for GPUs; such a file is kept only if it is accurate on labels:

    python model_tools/export_onnx.py --model models/latest.pt --half --data person/data.yaml
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
import evaluate_detection
import numpy as np
import quantize_onnx
from command_line import command, folder_beside
from numpy.typing import NDArray

from edge_perception.detection.backends.onnx import OnnxBackend
from edge_perception.detection.backends.pytorch import PyTorchBackend
from edge_perception.detection.decode import check_task
from edge_perception.detection.errors import first_line
from edge_perception.detection.nms import non_maximum_suppression
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
END2END_SCORE = 0.001
END2END_IOU = 0.7
END2END_BOXES = 300
END2END_BATCH = 16
"""What the graph's own NMS keeps, and images at most; the Detector's threshold still applies."""


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
    uint8_input: bool = False,
    end2end: bool = False,
    shapes: Sequence[tuple[int, int, int]] | None = None,
) -> Parity:
    """Export, simplify, compare, and only then put the file in its place.

    Args:
        model: Ultralytics checkpoint (.pt) of a detector.
        out: the .onnx file to write.
        image_size: input size in pixels that the metadata recommends; None: the checkpoint's.
        opset: ONNX operator set, at least LOWEST_OPSET.
        uint8_input: take (B, H, W, 3) uint8 RGB; the division by 255 moves into the graph.
        end2end: put out (B, 300, 6) with left, top, right, bottom, score, class, after NMS.
        shapes: batch, height and width of the inputs that are compared; None: PARITY_SHAPES.

    Returns:
        How well the two agree.

    Raises:
        ExportError: a wrong argument, or the export differs from PyTorch.
        OutputError: the file cannot be written.
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
    with folder_beside(out, '.export-') as folder:
        copy = folder / 'model.pt'
        shutil.copyfile(model, copy)
        exported = _export(copy, image_size=image_size, opset=opset, end2end=end2end)
        _tidy(exported, title=model.stem, end2end=end2end)
        if uint8_input:
            _take_uint8(exported)
        parity = compare(model, exported, shapes or PARITY_SHAPES)
        if parity.box_px > BOX_TOLERANCE_PX or parity.score > SCORE_TOLERANCE:
            raise ExportError(
                f'the export differs from PyTorch by {parity.box_px:.4f} px and '
                f'{parity.score:.1e} in score (at most {BOX_TOLERANCE_PX} px and '
                f'{SCORE_TOLERANCE:.0e}): no file was written'
            )
        os.replace(exported, out)
    return parity


def compare(checkpoint: Path, exported: Path, shapes: Sequence[tuple[int, int, int]]) -> Parity:
    """Run both files on the same images and take the largest differences."""
    box_px = score = 0.0
    count = 0
    with (
        PyTorchBackend(checkpoint, device='cpu') as reference,
        OnnxBackend(exported, device='cpu') as candidate,
    ):
        takes_uint8 = candidate.input_spec.dtype == np.uint8
        removes_doubles = (
            candidate.metadata['end2end'] == 'True' and reference.metadata['end2end'] != 'True'
        )
        for blob in parity_blobs(shapes):
            pixels = blob
            if takes_uint8:
                pixels = np.ascontiguousarray((blob * 255).round().astype(np.uint8))
                blob = pixels.astype(np.float32) / np.float32(255)
                pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
            expected, actual = reference.infer(blob)[0], candidate.infer(pixels)[0]
            if removes_doubles:
                expected = _nearest(expected, actual)
            if expected.shape != actual.shape:
                raise ExportError(
                    f'the export puts out {actual.shape} instead of {expected.shape} '
                    f'for an input of {blob.shape}: no file was written'
                )
            difference = np.abs(expected - actual)  # (B, 4+nc, N), or end-to-end (B, K, 6)
            if difference.shape[2] == 6 and candidate.metadata['end2end'] == 'True':
                difference = difference.transpose(0, 2, 1)
            # NaN must not pass for equal, which max() of Python could let happen.
            box_px = float(np.maximum(box_px, difference[:, :4].max()))
            score = float(np.maximum(score, difference[:, 4:].max()))
            if not np.isfinite(box_px + score):
                raise ExportError(f'NaN for an input of {blob.shape}: no file was written')
            count += 1
    return Parity(box_px, score, count)


def _nearest(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> NDArray[np.float32]:
    """For each row after NMS the row before it that it must come from.

    Args:
        expected: (B, 4+nc, N) of the network without NMS.
        actual: (B, K, 6), rows of zeros after the last object.

    Returns:
        (B, K, 6).

    Raises:
        ExportError: boxes of one class overlap more than NMS allows, or the best box is missing.
    """
    rows = np.zeros_like(actual)
    for image, kept, out in zip(expected, actual, rows, strict=True):
        boxes = np.concatenate((image[:2] - image[2:4] / 2, image[:2] + image[2:4] / 2)).T
        scores = image[4:].max(axis=0)
        filled = np.flatnonzero(kept[:, 4] > 0)
        for index in filled:
            distance = np.abs(boxes - kept[index, :4]).max(axis=1)
            distance += 100 * np.abs(scores - kept[index, 4])
            source = int(distance.argmin())
            out[index] = [*boxes[source], scores[source], image[4:, source].argmax()]
        order = non_maximum_suppression(
            boxes[scores >= END2END_SCORE],
            scores[scores >= END2END_SCORE],
            image[4:, scores >= END2END_SCORE].argmax(axis=0),
            iou_threshold=END2END_IOU,
            max_detections=END2END_BOXES,
            max_candidates=30000,
        )
        # A pair of boxes right at the threshold may fall either way.
        if abs(len(order) - len(filled)) > 0.02 * len(order) + 1:
            raise ExportError(
                f'the NMS of the export keeps {len(filled)} boxes instead of {len(order)}: '
                f'no file was written'
            )
    return rows


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


def _export(checkpoint: Path, *, image_size: int | None, opset: int, end2end: bool) -> Path:
    """Let ultralytics write the .onnx beside the checkpoint."""
    from ultralytics import YOLO

    # Its messages name the temporary file as the result.
    logging.getLogger('ultralytics').setLevel(logging.WARNING)
    suppression = {}
    if end2end:
        suppression = {
            'nms': True,
            'batch': END2END_BATCH,
            'conf': END2END_SCORE,
            'iou': END2END_IOU,
            'max_det': END2END_BOXES,
        }
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
            **suppression,
        )
    except (RuntimeError, ValueError, TypeError, KeyError, ImportError) as error:
        raise ExportError(f'ultralytics cannot export the model: {first_line(error)}') from error
    return Path(written)


def _tidy(path: Path, *, title: str, end2end: bool) -> None:
    """Take paths of this machine out of the file, and say what its output is.

    The description that Ultralytics writes names the training data's path.
    """
    import onnx

    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == 'description':
            entry.value = f'{title}, detector trained and exported with Ultralytics'
        if entry.key == 'end2end' and end2end:
            entry.value = 'True'
    for node in model.graph.node:
        node.ClearField('doc_string')
        del node.metadata_props[:]
    onnx.save(model, path)


def _take_uint8(path: Path) -> None:
    """Put transpose, cast and division in front of the graph: (B, H, W, 3) uint8 goes in."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    (images,) = graph.input
    batch, _, height, width = (
        axis.dim_param or axis.dim_value for axis in images.type.tensor_type.shape.dim
    )
    name = images.name
    inner = f'{name}_normalised'
    for node in graph.node:
        for index, given in enumerate(node.input):
            if given == name:
                node.input[index] = inner
    front = [
        helper.make_node('Transpose', [name], ['images_nchw'], perm=[0, 3, 1, 2]),
        helper.make_node('Cast', ['images_nchw'], ['images_float'], to=TensorProto.FLOAT),
        helper.make_node('Div', ['images_float', 'white'], [inner]),
    ]
    nodes = [*front, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.initializer.append(numpy_helper.from_array(np.float32(255), 'white'))
    graph.input.append(
        helper.make_tensor_value_info(name, TensorProto.UINT8, [batch, height, width, 3])
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)


@command('export_onnx')
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', required=True, type=Path, help='checkpoint (.pt)')
    parser.add_argument('--out', type=Path, help='default: the checkpoint with .onnx at its end')
    parser.add_argument('--imgsz', type=int, help='recommended input size in pixels')
    parser.add_argument('--opset', type=int, default=17, help=f'at least {LOWEST_OPSET}')
    parser.add_argument('--uint8-input', action='store_true', help='NHWC, 0..255')
    parser.add_argument('--end2end', action='store_true', help='NMS inside the graph')
    parser.add_argument('--half', action='store_true', help='FP16, gated by --data or --mot-gt')
    parser.add_argument(
        '--max-map-drop', type=float, default=1.0, help='points that --half may lose'
    )
    evaluate_detection.add_label_arguments(parser, required=False)
    options = parser.parse_args(arguments)
    if options.half and not (options.data or options.mot_gt):
        parser.error('--half needs labels to judge it by: --data or --mot-gt')
    out = options.out or options.model.with_suffix('.onnx')
    # Nothing is to be downloaded or installed for an export.
    os.environ.setdefault('YOLO_OFFLINE', 'true')
    os.environ.setdefault('YOLO_AUTOINSTALL', 'false')
    with tempfile.TemporaryDirectory(prefix='export-') as folder:
        target = Path(folder) / out.name if options.half else out
        parity = export_onnx(
            options.model,
            target,
            image_size=options.imgsz,
            opset=options.opset,
            uint8_input=options.uint8_input,
            end2end=options.end2end,
        )
        if options.half:
            outcome = quantize_onnx.quantize_onnx(
                target,
                out,
                quantize_onnx.scorer(options, 'onnx'),
                to='fp16',
                max_map_drop=options.max_map_drop,
            )
            print(f'FP16: mAP50-95 {outcome.after:.2f} (was {outcome.before:.2f})')
    print(
        f'{out}: {out.stat().st_size / 1e6:.1f} MB; over {parity.shapes} input shapes it differs '
        f'from PyTorch by at most {parity.box_px:.1e} px and {parity.score:.1e} in score'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
