from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_perception.detection import LayoutError, OutputValueError, UnsupportedTaskError
from edge_perception.detection.decode import (
    Layout,
    check_task,
    choose_layout,
    decode,
    grid_cells,
)

CANVAS_HW = (64, 96)
CELLS = 126
CLASSES = 3
# Two objects: cell number, centre x, centre y, width, height, class, score.
OBJECTS = ((17, 44.0, 12.0, 24.0, 16.0, 2, 0.75), (123, 80.0, 16.0, 30.0, 28.0, 0, 0.5))
EXPECTED_XYXY = [[32, 4, 56, 20], [65, 2, 95, 30]]


def cell_of(index: int) -> tuple[float, float, float]:
    """Column, row and stride of a cell, counted by hand: rows first, strides 8, 16, 32."""
    for stride in (8, 16, 32):
        columns, rows = CANVAS_HW[1] // stride, CANVAS_HW[0] // stride
        if index < columns * rows:
            return index % columns, index // columns, stride
        index -= columns * rows
    raise IndexError


def output_in(layout: Layout) -> np.ndarray:
    """The two objects as a network of that layout puts them out, (rows, columns) float32."""
    if layout is Layout.V8:
        output = np.zeros((4 + CLASSES, CELLS), np.float32)
        for cell, *box, class_id, score in OBJECTS:
            output[:4, cell] = box
            output[4 + class_id, cell] = score
        return output
    if layout is Layout.END2END:
        output = np.zeros((300, 6), np.float32)
        for row, (_, _, _, _, _, class_id, score) in enumerate(OBJECTS):
            output[row] = [*EXPECTED_XYXY[row], score, class_id]
        return output
    if layout is Layout.RTDETR:
        output = np.zeros((300, 4 + CLASSES), np.float32)
        for row, (_, x, y, width, height, class_id, score) in enumerate(OBJECTS):
            output[row, :4] = [x / 96, y / 64, width / 96, height / 64]
            output[row, 4 + class_id] = score
        return output
    cells = 3 * CELLS if layout is Layout.V5 else CELLS
    output = np.zeros((cells, 5 + CLASSES), np.float32)
    if layout is Layout.YOLOX_RAW:
        output[:, 2:4] = -1
    for cell, x, y, width, height, class_id, score in OBJECTS:
        output[cell, :4] = x, y, width, height
        if layout is Layout.YOLOX_RAW:
            column, row, stride = cell_of(cell)
            output[cell, :4] = [
                x / stride - column,
                y / stride - row,
                np.log(width / stride),
                np.log(height / stride),
            ]
        output[cell, 4] = 0.8
        output[cell, 5 + class_id] = score / 0.8
    return output


@pytest.mark.parametrize('layout', list(Layout))
def test_same_objects_from_every_layout(layout):
    found = decode(output_in(layout), layout, canvas_hw=CANVAS_HW, score_threshold=0.25)
    np.testing.assert_allclose(found.boxes_xyxy, EXPECTED_XYXY, atol=1e-4)
    np.testing.assert_allclose(found.scores, [0.75, 0.5], atol=1e-6)
    assert found.class_ids.tolist() == [2, 0]
    assert found.boxes_xyxy.dtype == found.scores.dtype == np.float32
    assert found.class_ids.dtype == np.int32


@pytest.mark.parametrize('layout', list(Layout))
def test_threshold_is_inclusive_and_classes_are_filtered(layout):
    output = output_in(layout)
    at = decode(output, layout, canvas_hw=CANVAS_HW, score_threshold=0.5)
    above = decode(output, layout, canvas_hw=CANVAS_HW, score_threshold=0.51)
    none = decode(output, layout, canvas_hw=CANVAS_HW, score_threshold=0.9)
    wanted = decode(
        output, layout, canvas_hw=CANVAS_HW, score_threshold=0.25, class_ids=np.array([0, 1])
    )
    assert at.class_ids.tolist() == [2, 0]
    assert above.class_ids.tolist() == [2]
    assert none.boxes_xyxy.shape == (0, 4)
    assert wanted.class_ids.tolist() == [0]


@pytest.mark.parametrize('layout', list(Layout))
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_nan_and_infinity_are_an_error_and_no_silence(layout, value):
    output = output_in(layout)
    if layout is Layout.V8:
        output[0, OBJECTS[0][0]] = value
    else:
        output[OBJECTS[0][0] if layout.needs_nms else 0, 0] = value
    with pytest.raises(OutputValueError, match='NaN or infinite'):
        decode(output, layout, canvas_hw=CANVAS_HW, score_threshold=0.25)


@pytest.mark.parametrize('layout', list(Layout))
def test_output_of_nothing_but_nan_is_an_error(layout):
    output = np.full_like(output_in(layout), np.nan)
    with pytest.raises(OutputValueError):
        decode(output, layout, canvas_hw=CANVAS_HW, score_threshold=0.25)


@given(
    output=arrays(np.float32, (4 + CLASSES, 20), elements=st.floats(0, 1, width=32)),
    threshold=st.floats(0, 1, width=32),
)
def test_v8_filter_agrees_with_the_transposed_reading(output, threshold):
    rows = output.T
    expected = [row for row in rows if row[4:].max() >= threshold]
    found = decode(output, Layout.V8, canvas_hw=CANVAS_HW, score_threshold=threshold)
    assert found.class_ids.tolist() == [int(row[4:].argmax()) for row in expected]
    np.testing.assert_array_equal(found.scores, [row[4:].max() for row in expected])
    np.testing.assert_allclose(
        (found.boxes_xyxy[:, :2] + found.boxes_xyxy[:, 2:]) / 2,
        np.array([row[:2] for row in expected], np.float32).reshape(-1, 2),
        atol=1e-6,
    )


@pytest.mark.parametrize('layout', list(Layout))
def test_shape_tells_the_layout(layout):
    chosen = choose_layout([output_in(layout)[None]], class_count=CLASSES, canvas_hw=CANVAS_HW)
    assert chosen is layout


@pytest.mark.parametrize(
    ('shape', 'classes', 'canvas_hw', 'metadata', 'expected'),
    [
        pytest.param((1, 84, 8400), 80, (640, 640), {}, Layout.V8, id='yolov8'),
        pytest.param((1, 25200, 85), 80, (640, 640), {}, Layout.V5, id='yolov5'),
        pytest.param((1, 102000, 85), 80, (1280, 1280), {}, Layout.V5, id='yolov5 P6'),
        pytest.param((1, 8400, 85), 80, (640, 640), {}, Layout.YOLOX, id='yolox'),
        pytest.param((1, 300, 6), 80, (640, 640), {}, Layout.END2END, id='end to end'),
        pytest.param((1, 300, 84), 80, (640, 640), {}, Layout.RTDETR, id='rt-detr'),
        # One class: (B, N, 6) is v5 or YOLOX by the number of rows, and end to end otherwise.
        pytest.param((1, 25200, 6), 1, (640, 640), {}, Layout.V5, id='yolov5, one class'),
        pytest.param((1, 300, 6), 1, (640, 640), {}, Layout.END2END, id='end to end, one class'),
        pytest.param((1, 5, 3549), 1, (416, 416), {}, Layout.V8, id='yolov8, one class'),
        # As many cells as rows: the square shape reads one way only.
        pytest.param((1, 84, 84), 80, (64, 64), {}, Layout.V8, id='v8 on a tiny canvas'),
        pytest.param(
            (1, 300, 6), 2, (640, 640), {'end2end': 'True'}, Layout.END2END, id='metadata decides'
        ),
        pytest.param(
            (1, 300, 6), 2, (640, 640), {'end2end': 'False'}, Layout.RTDETR, id='metadata excludes'
        ),
        pytest.param(
            (1, 8400, 85), 80, (640, 640), {'layout': 'v5'}, Layout.V5, id='metadata names it'
        ),
    ],
)
def test_layouts_in_the_wild(shape, classes, canvas_hw, metadata, expected):
    output = np.ones(shape, np.float32)
    chosen = choose_layout([output], class_count=classes, canvas_hw=canvas_hw, metadata=metadata)
    assert chosen is expected


def test_ambiguity_is_an_error_that_names_the_override():
    output = np.ones((1, 300, 6), np.float32)  # two classes: end to end, or RT-DETR
    with pytest.raises(LayoutError, match=r'end2end and rtdetr: choose one with layout=NAME'):
        choose_layout([output], class_count=2, canvas_hw=(640, 640))
    chosen = choose_layout([output], class_count=2, canvas_hw=(640, 640), override='rtdetr')
    assert chosen is Layout.RTDETR


def test_override_wins_over_metadata():
    output = np.ones((1, 300, 6), np.float32)
    chosen = choose_layout(
        [output],
        class_count=2,
        canvas_hw=(640, 640),
        metadata={'end2end': 'True'},
        override='rtdetr',
    )
    assert chosen is Layout.RTDETR


@pytest.mark.parametrize(
    ('shape', 'override', 'message'),
    [
        ((1, 84, 8400), 'v9', 'unknown layout'),
        ((1, 84, 8400), 'v5', r'layout v5 with 80 classes is \(B, N, 85\)'),
        ((1, 25200, 85), 'yolox_raw', r'\(B, 8400, 85\)'),
        ((1, 1000), 'v8', r'but the model puts out \(1, 1000\)'),
        ((1, 1000), 'auto', 'fits no layout'),
        ((1, 56, 8400), 'auto', 'fits no layout for 80 classes'),
        ((1, 85, 8400), 'auto', 'fits no layout for 80 classes'),
        ((1, 12345, 85), 'auto', 'fits no layout for 80 classes'),
    ],
)
def test_output_that_cannot_be_read_is_refused(shape, override, message):
    with pytest.raises(LayoutError, match=message):
        choose_layout(
            [np.ones(shape, np.float32)],
            class_count=80,
            canvas_hw=(640, 640),
            override=override,
        )


def test_mask_output_gives_a_segmentation_model_away():
    outputs = [np.ones((1, 116, 8400), np.float32), np.ones((1, 32, 160, 160), np.float32)]
    with pytest.raises(UnsupportedTaskError, match='segmentation'):
        choose_layout(outputs, class_count=80, canvas_hw=(640, 640))


@pytest.mark.parametrize('task', ['segment', 'pose', 'obb', 'classify'])
def test_other_tasks_are_refused_by_name(task):
    with pytest.raises(UnsupportedTaskError, match=task):
        check_task({'task': task})


def test_detection_and_silence_pass_the_task_check():
    check_task({'task': 'detect'})
    check_task({})


def test_grid_cells():
    assert grid_cells(CANVAS_HW) == CELLS
    assert grid_cells((640, 640)) == 8400
