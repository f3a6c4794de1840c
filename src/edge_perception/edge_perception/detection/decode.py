"""Raw network outputs into boxes, scores and classes, for the layouts that detectors come in.

| layout | output | what it holds |
|---|---|---|
| v8 | (B, 4+nc, N) | cx, cy, w, h in canvas pixels, class scores (Ultralytics v8 and later) |
| v5 | (B, N, 5+nc) | cx, cy, w, h in canvas pixels, objectness, class scores (YOLOv5, v7) |
| yolox | (B, N, 5+nc) | the same columns, boxes already decoded |
| yolox_raw | (B, N, 5+nc) | offsets in grid cells and log sizes, decoded here (YOLOX's export) |
| end2end | (B, K, 6) | left, top, right, bottom, score, class; duplicates already removed |
| rtdetr | (B, K, 4+nc) | cx, cy, w, h as parts of the canvas, class scores |

YOLOX: Ge et al., "YOLOX: Exceeding YOLO Series in 2021", arXiv:2107.08430. RT-DETR: Zhao et al.,
"DETRs Beat YOLOs on Real-time Object Detection", arXiv:2304.08069.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_perception.detection.errors import LayoutError, OutputValueError, UnsupportedTaskError


class Layout(str, enum.Enum):
    """How a network's output is to be read."""

    V8 = 'v8'
    V5 = 'v5'
    YOLOX = 'yolox'
    YOLOX_RAW = 'yolox_raw'
    END2END = 'end2end'
    RTDETR = 'rtdetr'

    @property
    def needs_nms(self) -> bool:
        """Whether one object may still have several boxes."""
        return self not in (Layout.END2END, Layout.RTDETR)

    @property
    def takes_bgr_255(self) -> bool:
        """Whether such networks are fed BGR in 0..255 instead of RGB in 0..1."""
        return self in (Layout.YOLOX, Layout.YOLOX_RAW)


LAYOUT_NAMES = tuple(layout.value for layout in Layout)
STRIDES = (8, 16, 32)
"""Pixels a cell of the feature maps that these detectors have."""


@dataclass(frozen=True)
class Candidates:
    """n boxes of one image on the canvas, before NMS.

    Attributes:
        boxes_xyxy: (n, 4) float32, canvas pixels.
        scores: (n,) float32.
        class_ids: (n,) int32.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]


def check_task(metadata: Mapping[str, str]) -> None:
    """Raise UnsupportedTaskError when the model says that it does something else than detect."""
    task = metadata.get('task', 'detect')
    if task != 'detect':
        raise UnsupportedTaskError(
            f'the model does task {task!r}, and only object detection (detect) is supported'
        )


def grid_cells(canvas_hw: tuple[int, int], strides: Sequence[int] = STRIDES) -> int:
    """How many cells the feature maps of a canvas have together."""
    return sum((canvas_hw[0] // stride) * (canvas_hw[1] // stride) for stride in strides)


def choose_layout(
    outputs: Sequence[NDArray[np.float32]],
    *,
    class_count: int,
    canvas_hw: tuple[int, int],
    metadata: Mapping[str, str] | None = None,
    override: str = 'auto',
) -> Layout:
    """Tell how the outputs of one inference are laid out.

    An override decides; else the model's metadata (`layout`, `end2end`); else the shape, which
    for a known class count and canvas fits one layout or is refused.

    Args:
        outputs: the network's outputs of any one inference.
        class_count: number of class names, nc.
        canvas_hw: height and width of the input that was inferred.
        metadata: of the model.
        override: one of LAYOUT_NAMES, or `auto`.

    Raises:
        LayoutError: nothing fits, or several do.
        UnsupportedTaskError: the outputs are those of a segmentation model.
    """
    if override != 'auto':
        if override not in LAYOUT_NAMES:
            raise LayoutError(
                f'unknown layout {override!r}: choose auto or one of {", ".join(LAYOUT_NAMES)}'
            )
        return _checked(Layout(override), outputs[0], class_count, canvas_hw)
    metadata = metadata or {}
    if metadata.get('layout') in LAYOUT_NAMES:
        return _checked(Layout(metadata['layout']), outputs[0], class_count, canvas_hw)
    if any(output.ndim == 4 for output in outputs[1:]):
        raise UnsupportedTaskError(
            'the model has a mask output: it is a segmentation model, and only object detection '
            'is supported'
        )
    output = outputs[0]
    if output.ndim != 3:
        raise _no_layout(output, class_count)
    _, rows, columns = output.shape
    if metadata.get('end2end') == 'True' and columns == 6:
        return Layout.END2END
    cells = grid_cells(canvas_hw)
    on_grid = rows == cells
    # YOLOv5 and v7 have three anchors a cell, their P6 models a fourth feature map.
    on_anchors = rows in (3 * cells, 3 * grid_cells(canvas_hw, (8, 16, 32, 64)))
    fitting = []
    if rows == 4 + class_count and columns > 1:
        fitting.append(Layout.V8)
    if columns == 5 + class_count and on_anchors:
        fitting.append(Layout.V5)
    if columns == 5 + class_count and on_grid:
        fitting.append(_yolox_kind(output))
    if not on_grid and not on_anchors and rows <= 1000:
        if columns == 6 and metadata.get('end2end') != 'False':
            fitting.append(Layout.END2END)
        if columns == 4 + class_count and rows != 4 + class_count:
            fitting.append(Layout.RTDETR)
    if not fitting:
        raise _no_layout(output, class_count)
    if len(fitting) > 1:
        raise LayoutError(
            f'output shape {output.shape} with {class_count} classes fits the layouts '
            f'{" and ".join(item.value for item in fitting)}: choose one with layout=NAME'
        )
    return fitting[0]


@np.errstate(over='ignore', invalid='ignore')  # what comes of it is looked at below
def decode(
    output: NDArray[np.float32],
    layout: Layout,
    *,
    canvas_hw: tuple[int, int],
    score_threshold: float,
    class_ids: NDArray[np.int32] | None = None,
) -> Candidates:
    """Boxes of one image that reach the threshold in their best class.

    The filter runs on the array as the network left it; only what passes is copied and turned.

    Args:
        output: the first output of one image, without the batch axis.
        layout: how to read it.
        canvas_hw: height and width of the network's input.
        score_threshold: a box needs at least this score.
        class_ids: only boxes whose best class is one of these; None for all.

    Raises:
        OutputValueError: a score, or a box that passes, is NaN or infinite.
    """
    if layout is Layout.V8:
        best = output[4:].max(axis=0)  # (N,)
        keep = _passing(best, score_threshold)
        scores, ids = best[keep], output[4:, keep].argmax(axis=0)
        boxes = _corners(output[:4, keep].T)
    elif layout is Layout.END2END:
        keep = _passing(output[:, 4], score_threshold)
        scores, ids = output[keep, 4], output[keep, 5].round()
        boxes = output[keep, :4]
    elif layout is Layout.RTDETR:
        best = output[:, 4:].max(axis=1)
        keep = _passing(best, score_threshold)
        scores, ids = best[keep], output[keep, 4:].argmax(axis=1)
        height, width = canvas_hw
        boxes = _corners(output[keep, :4]) * np.array([width, height] * 2, np.float32)
    else:
        # A score is objectness times class score, so objectness alone rules most boxes out.
        likely = _passing(output[:, 4], score_threshold)
        rows = output[likely]  # (m, 5+nc)
        best = rows[:, 5:].max(axis=1, initial=0) * rows[:, 4]
        keep = _passing(best, score_threshold)
        scores, ids = best[keep], rows[keep, 5:].argmax(axis=1) if len(keep) else keep
        boxes_cxcywh = rows[keep, :4]
        if layout is Layout.YOLOX_RAW:
            boxes_cxcywh = _decode_grid(boxes_cxcywh, likely[keep], canvas_hw)
        boxes = _corners(boxes_cxcywh)
    if not np.isfinite(boxes).all() or not (np.abs(ids) < 2**31).all():
        raise OutputValueError(_NOT_FINITE)
    found = Candidates(
        np.ascontiguousarray(boxes, np.float32),
        np.clip(scores, 0, 1).astype(np.float32),
        ids.astype(np.int32),
    )
    if class_ids is None:
        return found
    wanted = np.isin(found.class_ids, class_ids)
    return Candidates(found.boxes_xyxy[wanted], found.scores[wanted], found.class_ids[wanted])


_NOT_FINITE = (
    'the network put out NaN or infinite values: the model file is damaged, or its precision '
    '(FP16, INT8) does not suit this device'
)


def _passing(scores: NDArray[np.float32], threshold: float) -> NDArray[np.intp]:
    """Indices of the scores from the threshold on; NaN is an error, not a miss."""
    if np.isnan(scores).any():
        raise OutputValueError(_NOT_FINITE)
    return np.flatnonzero(scores >= threshold)


def _corners(boxes_cxcywh: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 4) centre and size to (n, 4) left, top, right, bottom."""
    half = boxes_cxcywh[:, 2:] / 2
    centre = boxes_cxcywh[:, :2]
    return np.concatenate((centre - half, centre + half), axis=1)


def _decode_grid(
    boxes: NDArray[np.float32], cells: NDArray[np.intp], canvas_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """YOLOX's grid offsets and log sizes (n, 4) of the given cells to canvas pixels."""
    origin_xy, stride = _yolox_grid(canvas_hw)
    stride_of_cell = stride[cells, None]
    centre = (boxes[:, :2] + origin_xy[cells]) * stride_of_cell
    return np.concatenate((centre, np.exp(boxes[:, 2:]) * stride_of_cell), axis=1)


@lru_cache(maxsize=8)
def _yolox_grid(
    canvas_hw: tuple[int, int],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Column and row (N, 2), and stride (N,), of every cell of the three feature maps."""
    origins, strides = [], []
    for stride in STRIDES:
        rows, columns = canvas_hw[0] // stride, canvas_hw[1] // stride
        grid_x, grid_y = np.meshgrid(np.arange(columns), np.arange(rows))
        origins.append(np.stack((grid_x, grid_y), axis=-1).reshape(-1, 2))
        strides.append(np.full(rows * columns, stride))
    return (
        np.concatenate(origins).astype(np.float32),
        np.concatenate(strides).astype(np.float32),
    )


def _yolox_kind(output: NDArray[np.float32]) -> Layout:
    """Decoded sizes are exponentials, never negative; raw ones are logarithms of them."""
    return Layout.YOLOX_RAW if (output[..., 2:4] < 0).any() else Layout.YOLOX


def _checked(
    layout: Layout, output: NDArray[np.float32], class_count: int, canvas_hw: tuple[int, int]
) -> Layout:
    """The layout that somebody named, or LayoutError when the output cannot be of it."""
    cells: int | str = grid_cells(canvas_hw) if layout is Layout.YOLOX_RAW else 'N'
    expected: dict[Layout, tuple[int | str, ...]] = {
        Layout.V8: ('B', 4 + class_count, 'N'),
        Layout.V5: ('B', 'N', 5 + class_count),
        Layout.YOLOX: ('B', 'N', 5 + class_count),
        Layout.YOLOX_RAW: ('B', cells, 5 + class_count),
        Layout.END2END: ('B', 'K', 6),
        Layout.RTDETR: ('B', 'K', 4 + class_count),
    }
    shape = expected[layout]
    fits = output.ndim == 3 and all(
        isinstance(size, str) or size == actual
        for size, actual in zip(shape, output.shape, strict=True)
    )
    if not fits:
        raise LayoutError(
            f'layout {layout.value} with {class_count} classes is '
            f'({", ".join(map(str, shape))}), but the model puts out {output.shape}'
        )
    return layout


def _no_layout(output: NDArray[np.float32], class_count: int) -> LayoutError:
    return LayoutError(
        f'output shape {output.shape} fits no layout for {class_count} classes: '
        f'the model is no detector of a known kind, or its labels are those of another model; '
        f'layout=NAME and labels=FILE override'
    )
