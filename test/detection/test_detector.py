from __future__ import annotations

import re
import time

import cv2
import numpy as np
import pytest

from edge_perception.detection import (
    Detector,
    InputSizeError,
    LabelsError,
    LayoutError,
    ModelFileError,
    OutputValueError,
    RangeError,
    UnsupportedTaskError,
)
from edge_perception.detection.decode import Layout
from edge_perception.types import Detections, Frame, ShapeError

# Canvas 64 x 96 (height x width). Two classes: person, car.
V8 = np.zeros((6, 126), np.float32)
V8[:, 5] = [48, 32, 24, 16, 0.8, 0.1]  # a person
V8[:, 6] = [49, 32, 24, 16, 0.6, 0.1]  # the same one, a little beside
V8[:, 7] = [48, 32, 24, 16, 0.1, 0.5]  # a car in the same place
V8[:, 8] = [20, 50, 10, 10, 0.3, 0.0]  # another person, unsure
GREY = np.full((64, 96, 3), 114, np.uint8)
DYNAMIC = ('batch', 3, 'height', 'width')


def test_network_rows_become_detections_in_frame_pixels(constant_model):
    frame = np.zeros((128, 192, 3), np.uint8)  # twice the canvas
    with Detector(model_path=constant_model(V8), image_size=None) as detector:
        found = detector(frame)
    assert isinstance(found, Detections)
    np.testing.assert_allclose(
        found.xyxy, [[72, 48, 120, 80], [72, 48, 120, 80], [30, 90, 50, 110]], atol=1e-4
    )
    np.testing.assert_allclose(found.score, [0.8, 0.5, 0.3])
    assert found.class_id.tolist() == [0, 1, 0]
    assert detector.names == {0: 'person', 1: 'car'}


@pytest.mark.parametrize('frame_hw', [(480, 640), (640, 480), (97, 311), (1080, 1920), (160, 160)])
def test_light_in_the_frame_is_found_where_it_is(bright_cell_model, frame_hw):
    """The model boxes each bright cell of its canvas, so the mapping can be seen end to end."""
    height, width = frame_hw
    frame = np.zeros((height, width, 3), np.uint8)
    left, top = width // 2, height // 3
    right, bottom = left + width // 5, top + height // 4
    frame[top:bottom, left:right, 2] = 255  # red: the model's first channel
    with Detector(model_path=bright_cell_model(), score_threshold=0.5) as detector:
        found = detector(frame)
    cell = 8 / 160 * max(height, width)
    seen = [*found.xyxy[:, :2].min(axis=0), *found.xyxy[:, 2:].max(axis=0)]
    np.testing.assert_allclose(seen, [left, top, right, bottom], atol=0.55 * cell)


@pytest.mark.parametrize(('channel', 'colour'), [(0, 2), (1, 1), (2, 0)])
def test_network_is_fed_rgb(bright_cell_model, channel, colour):
    frame = np.zeros((160, 160, 3), np.uint8)
    frame[:, :, colour] = 255
    with Detector(model_path=bright_cell_model(channel=channel)) as detector:
        assert len(detector(frame)) == 300  # all 400 cells are lit, and 300 is the limit
        assert len(detector(np.zeros_like(frame))) == 0


def test_frame_and_array_are_the_same(constant_model):
    with Detector(model_path=constant_model(V8)) as detector:
        np.testing.assert_array_equal(detector(Frame(GREY, 5, 'camera')).xyxy, detector(GREY).xyxy)


@pytest.mark.parametrize('shape', [(1, 3, 64, 96), (2, 3, 64, 96), ('batch', 3, 64, 96)])
def test_sequence_gives_a_list_whatever_the_batch_of_the_model(bright_cell_model, shape):
    frames = []
    for number in range(5):
        frame = np.zeros((160, 160, 3), np.uint8)
        frame[32 * number : 32 * number + 8, :8, 2] = 255
        frames.append(frame)
    with Detector(model_path=bright_cell_model(batch=shape[0])) as detector:
        found = detector(frames)
    assert [item.xyxy.tolist() for item in found] == [
        [[0, 32 * number, 8, 32 * number + 8]] for number in range(5)
    ]


def test_batch_of_different_sizes(constant_model):
    with Detector(model_path=constant_model(V8, input_shape=('batch', 3, 64, 96))) as detector:
        small, large = detector([GREY, np.zeros((640, 960, 3), np.uint8)])
    np.testing.assert_allclose(large.xyxy, small.xyxy * 10, rtol=1e-5)


def test_no_frames_no_results(constant_model):
    with Detector(model_path=constant_model(V8)) as detector:
        assert detector([]) == []


def test_thresholds_classes_and_limit_are_live(constant_model):
    with Detector(model_path=constant_model(V8)) as detector:
        detector.score_threshold = 0.55
        assert detector(GREY).score.tolist() == pytest.approx([0.8])
        detector.iou_threshold = 0.99
        assert detector(GREY).score.tolist() == pytest.approx([0.8, 0.6])
        detector.max_detections = 1
        assert len(detector(GREY)) == 1
        detector.max_detections = 300
        detector.score_threshold = 0.2
        detector.classes = ['car']
        assert detector(GREY).class_id.tolist() == [1]
        with pytest.raises(LabelsError, match='unknown class tram'):
            detector.classes = ['tram']
        assert detector.classes == ('car',)
        detector.classes = ()
        assert set(detector(GREY).class_id.tolist()) == {0, 1}


def test_timings_are_of_the_last_call(constant_model):
    with Detector(model_path=constant_model(V8)) as detector:
        start = time.perf_counter()
        detector([GREY, GREY])
        elapsed_ms = (time.perf_counter() - start) * 1e3
        first = detector.timings
        detector(GREY)
    assert set(first) == {'preprocess', 'inference', 'postprocess'}
    assert all(value > 0 for value in first.values())
    assert sum(first.values()) <= elapsed_ms
    assert detector.timings is not first


def test_auto_compares_the_engines_of_the_cpu_and_says_so(constant_model):
    with Detector(model_path=constant_model(V8), device='cpu') as detector:
        assert detector.backend_name in ('onnx', 'openvino')
        assert detector.device == 'cpu'
        other = {'onnx': 'openvino', 'openvino': 'onnx'}[detector.backend_name]
        assert re.fullmatch(
            rf'{detector.backend_name} on cpu: the fastest here, [\d.]+ ms an inference at 64x96, '
            rf'[\d.]+ ms with {other}( \(at best: the machine is busy\))?',
            detector.reason,
        )
        assert detector.layout is Layout.V8
    with Detector('onnx', model_path=constant_model(V8), device='cpu') as detector:
        assert detector.reason == 'onnx on cpu: as asked for'


def test_end_to_end_output_needs_no_nms(constant_model):
    rows = np.zeros((300, 6), np.float32)
    rows[0] = [10, 10, 20, 20, 0.4, 1]
    rows[1] = [10, 10, 20, 20, 0.9, 1]
    path = constant_model(rows, metadata={'end2end': 'True'})
    with Detector(model_path=path) as detector:
        assert detector(GREY).score.tolist() == pytest.approx([0.9, 0.4])


def test_end_to_end_class_without_a_name_is_an_error(constant_model):
    rows = np.zeros((300, 6), np.float32)
    rows[0] = [10, 10, 20, 20, 0.9, 7]
    path = constant_model(rows, metadata={'end2end': 'True'})
    with (
        Detector(model_path=path) as detector,
        pytest.raises(LabelsError, match='reports class 7, but there are only 2'),
    ):
        detector(GREY)


def test_yolox_is_fed_bgr_in_0_to_255(constant_model, monkeypatch):
    rows = np.ones((126, 7), np.float32)
    with Detector(model_path=constant_model(rows)) as detector:
        assert detector.layout is Layout.YOLOX
        frame = np.full((64, 96, 3), (10, 20, 30), np.uint8)
        blob, _ = detector.preprocess([frame])
        assert blob[0, :, 5, 5].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ('input_shape', 'image_size', 'frame_hw', 'blob_hw'),
    [
        pytest.param(DYNAMIC, 96, (128, 192), (64, 96), id='dynamic: smallest that holds'),
        pytest.param(DYNAMIC, (64, 96), (192, 128), (64, 64), id='dynamic: a pair of limits'),
        pytest.param(DYNAMIC, None, (128, 192), (288, 416), id='dynamic: size from metadata'),
        pytest.param((1, 3, 64, 96), None, (500, 100), (64, 96), id='fixed: as it is'),
    ],
)
def test_input_size(constant_model, input_shape, image_size, frame_hw, blob_hw):
    path = constant_model(
        V8, input_shape=input_shape, metadata={'imgsz': '[416, 416]', 'stride': '32'}
    )
    with Detector(model_path=path, image_size=image_size) as detector:
        blob, _ = detector.preprocess([np.zeros((*frame_hw, 3), np.uint8)])
    assert blob.shape[2:] == blob_hw


@pytest.mark.parametrize(
    ('input_shape', 'image_size', 'message'),
    [
        ((1, 3, 64, 96), 128, 'fixed input size 64x96'),
        (DYNAMIC, 100, 'no multiple of the stride 32: 128x128 is the next'),
    ],
)
def test_input_size_that_does_not_suit_is_refused(
    constant_model, input_shape, image_size, message
):
    path = constant_model(V8, input_shape=input_shape)
    with pytest.raises(InputSizeError, match=message):
        Detector(model_path=path, image_size=image_size)


@pytest.mark.parametrize(
    ('build', 'options', 'error', 'message'),
    [
        pytest.param(
            {'metadata': {'task': 'segment'}}, {}, UnsupportedTaskError, 'segment', id='task'
        ),
        pytest.param({'masks': True}, {}, UnsupportedTaskError, 'segmentation', id='masks'),
        pytest.param({'names': None}, {}, LabelsError, 'labels=FILE', id='no labels'),
        pytest.param({'names': ['a']}, {}, LayoutError, 'fits no layout for 1 c', id='few labels'),
        pytest.param({}, {'layout': 'v5'}, LayoutError, 'layout v5 with 2 classes', id='layout'),
        pytest.param({}, {'layout': 'v4'}, LayoutError, 'unknown layout', id='unknown layout'),
        pytest.param({}, {'labels': 'absent.txt'}, LabelsError, 'absent.txt', id='labels file'),
        pytest.param({}, {'classes': ['tram']}, LabelsError, 'has person, car', id='class'),
        pytest.param({}, {'backend': 'pytorch'}, ModelFileError, 'reads .pt', id='file type'),
    ],
)
def test_unsuitable_model_is_refused_at_once_in_one_line(
    constant_model, build, options, error, message
):
    with pytest.raises(error, match=message) as caught:
        Detector(model_path=constant_model(V8, **build), **options)
    assert '\n' not in str(caught.value)


def test_nan_from_the_network_is_an_error(constant_model):
    rows = V8.copy()
    rows[4, 100] = np.nan
    with (
        Detector(model_path=constant_model(rows)) as detector,
        pytest.raises(OutputValueError, match='NaN'),
    ):
        detector(GREY)


@pytest.mark.parametrize(
    'image',
    [
        pytest.param(np.zeros((64, 96), np.uint8), id='grey'),
        pytest.param(np.zeros((64, 96, 4), np.uint8), id='four channels'),
        pytest.param(np.zeros((64, 96, 3), np.float32), id='float'),
        pytest.param(np.zeros((0, 96, 3), np.uint8), id='empty'),
    ],
)
def test_other_images_are_refused(constant_model, image):
    with Detector(model_path=constant_model(V8)) as detector:
        with pytest.raises(ShapeError):
            detector([image])
        assert len(detector(GREY)) == 3


@pytest.mark.parametrize(
    'options',
    [{'score_threshold': 1.5}, {'iou_threshold': -0.1}, {'max_detections': 0}],
)
def test_values_outside_their_range_are_refused(constant_model, options):
    with pytest.raises(RangeError, match=next(iter(options))):
        Detector(model_path=constant_model(V8), **options)


def test_warm_up_sizes_the_buffers(constant_model):
    path = constant_model(V8, input_shape=DYNAMIC)
    with Detector(model_path=path, image_size=96) as detector:
        detector.warm_up((128, 192))
        blob, _ = detector.preprocess([np.zeros((128, 192, 3), np.uint8)])
        again, _ = detector.preprocess([np.zeros((128, 192, 3), np.uint8)])
        assert again is blob


# On frame 100 of the demo clip (from 0), which training has not seen, measured by eye.
PEDESTRIANS_XYXY = [
    (312, 189, 333, 264),
    (558, 239, 593, 346),
    (571, 281, 613, 392),
    (614, 273, 640, 375),
]


def test_default_model_finds_the_pedestrians_of_the_demo_clip(default_model, demo_clip):
    capture = cv2.VideoCapture(str(demo_clip))
    frame = [capture.read()[1] for _ in range(101)][100]
    capture.release()
    with Detector(model_path=default_model, score_threshold=0.45) as detector:
        assert detector.names == {0: 'person'}
        assert detector.image_hw == (416, 416)
        found = detector(frame)
    assert len(found) == 4
    best = []
    for left, top, right, bottom in PEDESTRIANS_XYXY:
        corner = np.minimum(found.xyxy[:, 2:], [right, bottom])
        overlap = np.prod(np.clip(corner - np.maximum(found.xyxy[:, :2], [left, top]), 0, None), 1)
        areas = np.prod(found.xyxy[:, 2:] - found.xyxy[:, :2], axis=1)
        iou = overlap / (areas + (right - left) * (bottom - top) - overlap)
        assert iou.max() > 0.4
        best.append(int(iou.argmax()))
    assert sorted(best) == [0, 1, 2, 3]  # each has a box of its own


@pytest.mark.parametrize(
    ('image', 'expected'),
    [('bus.jpg', {'bus': 1, 'person': 4}), ('zidane.jpg', {'person': 2, 'tie': 1})],
)
def test_reference_images(reference_data, image, expected):
    with Detector(model_path=reference_data / 'models' / 'yolov8n.onnx') as detector:
        found = detector(cv2.imread(str(reference_data / 'data' / 'coco8' / image)))
    names = [detector.names[class_id] for class_id in found.class_id.tolist()]
    assert {name: names.count(name) for name in names} == expected


def test_engines_agree_on_the_same_weights(reference_data):
    pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    image = cv2.imread(str(reference_data / 'data' / 'coco8' / 'bus.jpg'))
    square = image[:810, :810].copy()  # so that both see a square canvas
    results = []
    for name in ('yolov8n.onnx', 'yolov8n.pt'):
        with Detector(model_path=reference_data / 'models' / name, device='cpu') as detector:
            results.append(detector(square))
    onnx, pytorch = results
    assert onnx.class_id.tolist() == pytorch.class_id.tolist()
    np.testing.assert_allclose(onnx.score, pytorch.score, atol=1e-3)
    np.testing.assert_allclose(onnx.xyxy, pytorch.xyxy, atol=0.1)
