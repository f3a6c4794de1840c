"""What the detector adds to its engine.

Run: make bench ARGS=test/benchmarks/test_detection_benchmark.py
"""

from __future__ import annotations

import numpy as np
import pytest

from edge_perception.detection import Detector
from edge_perception.detection.decode import Layout, decode
from edge_perception.detection.nms import non_maximum_suppression
from edge_perception.detection.preprocess import Preprocessor


@pytest.mark.parametrize('height', [480, 720, 1080])
def test_letterbox_to_640(benchmark, height):
    image = np.random.default_rng(0).integers(0, 256, (height, height * 16 // 9, 3), np.uint8)
    preprocess = Preprocessor((640, 640), rectangular=True)
    blob, _ = benchmark(preprocess, [image])
    assert blob.shape == (1, 3, 384, 640)


def test_decode_of_80_classes_at_640(benchmark):
    output = np.random.default_rng(0).random((84, 8400), np.float32) * 0.2
    output[4, ::28] = 0.9  # 300 boxes pass
    found = benchmark(decode, output, Layout.V8, canvas_hw=(640, 640), score_threshold=0.25)
    assert len(found.scores) == 300


@pytest.mark.parametrize('count', [30, 300, 3000])
def test_nms_of_boxes_that_hardly_overlap(benchmark, count):
    random = np.random.default_rng(0)
    corner = random.random((count, 2), np.float32) * 600
    boxes = np.concatenate((corner, corner + 20), axis=1)
    scores = random.random(count).astype(np.float32)
    class_ids = random.integers(0, 80, count).astype(np.int32)
    kept = benchmark(non_maximum_suppression, boxes, scores, class_ids, iou_threshold=0.6)
    assert 0 < len(kept) <= 300


def test_default_model_call(benchmark, default_model):
    frame = np.random.default_rng(0).integers(0, 256, (576, 768, 3), np.uint8)
    with Detector(model_path=default_model, spin=False) as detector:
        detector.warm_up(frame.shape[:2])
        benchmark(detector, frame)
