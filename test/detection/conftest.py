"""Small ONNX models, built here, that real ONNX Runtime sessions run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

ModelBuilder = Callable[..., Path]

INPUT_HW = (64, 96)
"""Canvas of the fixed models; 12 x 8 + 6 x 4 + 3 x 2 = 126 cells."""


def _save(graph: onnx.GraphProto, path: Path, metadata: Mapping[str, str]) -> Path:
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8, producer_name='test'
    )
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture
def constant_model(tmp_path: Path) -> ModelBuilder:
    """Builder of models that put out given rows for every image, whatever it shows.

    The output depends on the input (times zero), so that the batch follows it and NaN in gives
    NaN out, as in a real network.
    """

    def build(
        rows: NDArray[np.float32],
        *,
        names: Sequence[str] | None = ('person', 'car'),
        input_shape: Sequence[int | str] = (1, 3, *INPUT_HW),
        metadata: Mapping[str, str] | None = None,
        masks: bool = False,
        name: str = 'model.onnx',
    ) -> Path:
        props = dict(metadata or {})
        if names is not None:
            props.setdefault('names', repr(dict(enumerate(names))))
        initializers = [
            numpy_helper.from_array(rows[None].astype(np.float32), 'rows'),
            numpy_helper.from_array(np.zeros(1, np.float32), 'zero'),
            numpy_helper.from_array(np.array([1, 2, 3], np.int64), 'axes'),
            numpy_helper.from_array(np.array([0, 1, 1], np.int64), 'flat'),
        ]
        nodes = [
            helper.make_node('ReduceMean', ['images'], ['mean'], axes=[1, 2, 3], keepdims=1),
            helper.make_node('Mul', ['mean', 'zero'], ['nothing']),
            helper.make_node('Reshape', ['nothing', 'flat'], ['per_image']),
            helper.make_node('Add', ['rows', 'per_image'], ['output0']),
        ]
        outputs = [
            helper.make_tensor_value_info(
                'output0', TensorProto.FLOAT, [input_shape[0], *rows.shape]
            )
        ]
        if masks:
            nodes.append(helper.make_node('Identity', ['images'], ['output1']))
            outputs.append(
                helper.make_tensor_value_info('output1', TensorProto.FLOAT, list(input_shape))
            )
        graph = helper.make_graph(
            nodes,
            'constant',
            [helper.make_tensor_value_info('images', TensorProto.FLOAT, list(input_shape))],
            outputs,
            [item for item in initializers if item.name != 'axes'],
        )
        return _save(graph, tmp_path / name, props)

    return build


@pytest.fixture
def bright_cell_model(tmp_path: Path) -> ModelBuilder:
    """Builder of models that see: each 8x8 cell of the canvas is a box, its score its red value.

    Layout v8 with one class. `bgr_255` makes it a decoded YOLOX, whose input is BGR in 0..255.
    """

    def build(
        canvas_hw: tuple[int, int] = (160, 160),
        *,
        batch: int | str = 1,
        channel: int = 0,
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        height, width = canvas_hw[0] // 8, canvas_hw[1] // 8
        grid_y, grid_x = np.mgrid[:height, :width]
        boxes = np.stack(
            (grid_x * 8 + 4, grid_y * 8 + 4, np.full_like(grid_x, 8), np.full_like(grid_x, 8))
        ).reshape(1, 4, -1)
        pick = np.zeros((1, 3, 1, 1), np.float32)
        pick[0, channel] = 1
        nodes = [
            helper.make_node('Conv', ['images', 'pick'], ['plane']),
            helper.make_node(
                'AveragePool', ['plane'], ['cells'], kernel_shape=[8, 8], strides=[8, 8]
            ),
            helper.make_node('Reshape', ['cells', 'flat'], ['scores']),
            helper.make_node('Mul', ['scores', 'zero'], ['nothing']),
            helper.make_node('Add', ['boxes', 'nothing'], ['all_boxes']),
            helper.make_node('Concat', ['all_boxes', 'scores'], ['output0'], axis=1),
        ]
        initializers = [
            numpy_helper.from_array(pick, 'pick'),
            numpy_helper.from_array(np.array([0, 1, -1], np.int64), 'flat'),
            numpy_helper.from_array(np.zeros(1, np.float32), 'zero'),
            numpy_helper.from_array(boxes.astype(np.float32), 'boxes'),
        ]
        graph = helper.make_graph(
            nodes,
            'bright',
            [helper.make_tensor_value_info('images', TensorProto.FLOAT, [batch, 3, *canvas_hw])],
            [
                helper.make_tensor_value_info(
                    'output0', TensorProto.FLOAT, [batch, 5, height * width]
                )
            ],
            initializers,
        )
        props: dict[str, Any] = {'names': "{0: 'light'}", **(metadata or {})}
        return _save(graph, tmp_path / 'bright.onnx', props)

    return build
