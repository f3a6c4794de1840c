"""How many images to infer together."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edge_perception.detection import Detector


@pytest.mark.parametrize('batch, most', [(1, 8), ('batch', 1), (4, 1)])
def test_no_batch_where_model_or_caller_want_none(bright_cell_model, batch, most):
    with Detector(model_path=bright_cell_model(batch=batch)) as detector:
        assert detector.best_batch(most) == 1


@pytest.mark.parametrize('most, best', [(2, 2), (3, 2), (8, 2)])
def test_images_that_cost_nothing_more_go_together(default_model, tmp_path, most, best):
    """A model for exactly two images takes as long for one of them."""
    model = onnx.load(default_model)
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    for size, value in zip(sizes, (2, 3, 416, 416), strict=True):
        size.dim_value = value
    path = tmp_path / 'pair.onnx'
    onnx.save(model, path)
    with Detector('onnx', model_path=path) as detector:
        assert detector.best_batch(most) == best


def test_what_was_measured_leaves_no_trace(bright_cell_model):
    frame = np.zeros((160, 160, 3), np.uint8)
    frame[:8, :8, 2] = 255
    with Detector(model_path=bright_cell_model(batch='batch')) as detector:
        before = detector(frame)
        detector.best_batch(4)
        np.testing.assert_array_equal(detector(frame).xyxy, before.xyxy)
