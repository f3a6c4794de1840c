from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_perception.detection.nms import non_maximum_suppression


def iou(first: np.ndarray, second: np.ndarray) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return overlap / (sum(areas) - overlap)


def plain_nms(boxes, scores, class_ids, threshold) -> list[int]:
    """The definition: best first, and each kept box removes its class's overlapping ones."""
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if all(
            class_ids[index] != class_ids[other] or iou(boxes[index], boxes[other]) <= threshold
            for other in kept
        ):
            kept.append(index)
    return kept


@st.composite
def scenes(draw):
    count = draw(st.integers(0, 30))
    # Whole pixels, so that no IoU lies within rounding of a threshold that is not hit exactly.
    origin = draw(arrays(np.int64, (count, 2), elements=st.integers(0, 60)))
    size = draw(arrays(np.int64, (count, 2), elements=st.integers(1, 40)))
    boxes = np.concatenate((origin, origin + size), axis=1).astype(np.float32)
    scores = draw(
        arrays(np.float32, count, elements=st.floats(0.015625, 1, width=32), unique=True)
    )
    class_ids = draw(arrays(np.int32, count, elements=st.integers(0, 3)))
    return boxes, scores, class_ids


@settings(max_examples=200)
@given(scene=scenes(), threshold=st.sampled_from([0.1234, 0.3456, 0.5123, 0.7891]))
def test_agrees_with_the_definition(scene, threshold):
    boxes, scores, class_ids = scene
    kept = non_maximum_suppression(boxes, scores, class_ids, iou_threshold=threshold)
    assert kept.tolist() == plain_nms(boxes, scores, class_ids, threshold)


@given(scene=scenes())
def test_a_second_pass_changes_nothing(scene):
    boxes, scores, class_ids = scene
    kept = non_maximum_suppression(boxes, scores, class_ids, iou_threshold=0.5123)
    again = non_maximum_suppression(
        boxes[kept], scores[kept], class_ids[kept], iou_threshold=0.5123
    )
    assert again.tolist() == list(range(len(kept)))


@given(scene=scenes(), limit=st.integers(1, 10))
def test_max_detections_keeps_the_best(scene, limit):
    boxes, scores, class_ids = scene
    everything = non_maximum_suppression(boxes, scores, class_ids, iou_threshold=0.5123)
    limited = non_maximum_suppression(
        boxes, scores, class_ids, iou_threshold=0.5123, max_detections=limit
    )
    assert limited.tolist() == everything[:limit].tolist()


def test_boxes_of_different_classes_do_not_hide_each_other():
    boxes = np.array([[10, 10, 50, 50]] * 3, np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    kept = non_maximum_suppression(boxes, scores, np.array([0, 79, 0]), iou_threshold=0.5)
    assert kept.tolist() == [0, 1]


def test_boxes_with_negative_corners_keep_their_classes_apart():
    # The offset between classes must exceed the whole extent, not just the largest coordinate.
    boxes = np.array([[-300, -300, -200, -200], [-300, -300, -200, -200]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    kept = non_maximum_suppression(boxes, scores, np.array([0, 1]), iou_threshold=0.5)
    assert kept.tolist() == [0, 1]


def test_cap_drops_the_worst_candidates_only():
    random = np.random.default_rng(0)
    corner = np.arange(500, dtype=np.float32)[:, None] * 20
    boxes = np.concatenate((corner, corner, corner + 10, corner + 10), axis=1)
    scores = random.permutation(500).astype(np.float32) / 500
    kept = non_maximum_suppression(
        boxes, scores, np.zeros(500, np.int32), iou_threshold=0.5, max_candidates=50
    )
    assert kept.tolist() == np.argsort(-scores)[:50].tolist()


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_nothing_in_nothing_out(dtype):
    kept = non_maximum_suppression(
        np.empty((0, 4), dtype), np.empty(0, dtype), np.empty(0, np.int32), iou_threshold=0.5
    )
    assert kept.shape == (0,)
