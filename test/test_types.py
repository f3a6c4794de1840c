"""The arrays at the borders check themselves."""

import numpy as np
import pytest

from edge_perception.types import Detections, Frame, ShapeError, Tracks


def detections(n):
    return Detections(
        xyxy=np.arange(n * 4, dtype=np.float32).reshape(n, 4),
        score=np.linspace(0, 1, n, dtype=np.float32),
        class_id=np.arange(n, dtype=np.int32),
    )


@pytest.mark.parametrize('kind', [Detections, Tracks])
def test_empty_has_length_zero(kind):
    assert len(kind.empty()) == 0


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('xyxy', np.zeros((3, 5), np.float32), r'Detections.xyxy: expected shape \(3, 4\), got'),
        ('xyxy', np.zeros((3, 4)), 'Detections.xyxy: expected dtype float32, got float64'),
        ('score', np.zeros(2, np.float32), r'Detections.score: expected shape \(3,\), got \(2,\)'),
        ('class_id', [1, 2, 3], 'Detections.class_id: expected dtype int32, got list'),
    ],
)
def test_wrong_field_is_named_with_expected_and_actual(field, value, message):
    good = detections(3)
    fields = {'xyxy': good.xyxy, 'score': good.score, 'class_id': good.class_id, field: value}
    with pytest.raises(ShapeError, match=message):
        Detections(**fields)


@pytest.mark.parametrize(
    'index', [slice(1, 3), np.array([1, 2]), [1, 2], np.array([False, True, True, False])]
)
def test_selection_takes_the_same_objects_of_every_field(index):
    chosen = detections(4)[index]
    np.testing.assert_array_equal(chosen.class_id, [1, 2])
    np.testing.assert_array_equal(chosen.xyxy[:, 0], [4, 8])


def test_selection_by_an_empty_list_is_empty():
    assert len(detections(4)[[]]) == 0


def test_concatenate_keeps_order_and_takes_nothing():
    joined = Detections.concatenate([detections(2), Detections.empty(), detections(1)])
    np.testing.assert_array_equal(joined.class_id, [0, 1, 0])
    assert len(Detections.concatenate([])) == 0


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_frame_refuses_what_is_no_bgr_image(image):
    with pytest.raises(ShapeError, match=r'expected \(height, width, 3\) uint8'):
        Frame(image)
