from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from edge_perception.detection import BackendError, Detector, ModelFileError
from edge_perception.detection.backends import (
    Backend,
    available_backends,
    backend_class,
    backends_for_file,
)
from edge_perception.detection.backends.onnx import OnnxBackend

ROWS = np.arange(6 * 126, dtype=np.float32).reshape(6, 126)


def test_importing_the_library_loads_no_engine():
    code = (
        'import sys, edge_perception.detection as d, edge_perception.detection.backends as b\n'
        'b.available_backends()\n'
        'engines = {"torch", "onnxruntime", "ultralytics", "openvino", "tensorrt", "onnx"}\n'
        'print(sorted(engines & set(sys.modules)))'
    )
    output = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.strip() == '[]'


def test_registry_finds_the_modules_of_the_folder():
    backends = available_backends()
    assert {'onnx', 'openvino', 'pytorch', 'tensorrt'} <= set(backends)
    assert all(name == item.name for name, item in backends.items())
    assert backend_class('onnx') is OnnxBackend


def test_unknown_backend_names_those_there_are():
    with pytest.raises(BackendError, match=r"unknown backend 'tflite': .*'onnx', .*'pytorch'"):
        backend_class('tflite')


def test_file_type_tells_the_backend():
    assert backends_for_file('a/b.ONNX')[0] is OnnxBackend
    assert backends_for_file('b.pt')[0].name == 'pytorch'
    with pytest.raises(ModelFileError, match=r'no backend reads \.tflite'):
        backends_for_file('model.tflite')


def test_onnx_declares_its_input_and_metadata(constant_model):
    path = constant_model(
        ROWS, input_shape=('batch', 3, 'height', 'width'), metadata={'stride': '32'}
    )
    with OnnxBackend(path, device='cpu') as backend:
        assert backend.input_spec.name == 'images'
        assert backend.input_spec.dtype == np.float32
        assert backend.input_spec.shape == (None, 3, None, None)
        assert backend.metadata == {'stride': '32', 'names': "{0: 'person', 1: 'car'}"}
        assert backend.device == 'cpu'
        assert backend.providers == ['CPUExecutionProvider']


def test_onnx_computes_the_graph(constant_model):
    path = constant_model(ROWS, input_shape=('batch', 3, 64, 96))
    with OnnxBackend(path, threads=1, spin=False) as backend:
        (output,) = backend.infer(np.zeros((2, 3, 64, 96), np.float32))
    assert output.dtype == np.float32
    np.testing.assert_array_equal(output, [ROWS, ROWS])


def test_options_reach_the_engine(constant_model):
    with OnnxBackend(constant_model(ROWS), threads=1, spin=False) as backend:
        options = backend.session.get_session_options()
        assert options.intra_op_num_threads == 1
        assert options.get_session_config_entry('session.intra_op.allow_spinning') == '0'


def test_activate_and_close_may_be_repeated(constant_model):
    backend = OnnxBackend(constant_model(ROWS))
    backend.activate()
    backend.activate()
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match='not active'):
        backend.infer(np.zeros((1, 3, 64, 96), np.float32))
    backend.activate()
    assert backend.infer(np.zeros((1, 3, 64, 96), np.float32))[0].shape == (1, *ROWS.shape)


def test_wrong_input_shape_is_one_line(constant_model):
    with (
        OnnxBackend(constant_model(ROWS)) as backend,
        pytest.raises(BackendError, match=r'input of shape \(1, 3, 32, 32\)') as caught,
    ):
        backend.infer(np.zeros((1, 3, 32, 32), np.float32))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('suffix', ['onnx', 'pt'])
@pytest.mark.parametrize(
    ('content', 'message'),
    [
        pytest.param(None, 'model file not found', id='missing'),
        pytest.param(b'', 'model file is empty', id='empty'),
        pytest.param(b'no model at all' * 100, 'cannot load', id='corrupt'),
    ],
)
def test_unusable_file_is_one_line_with_its_name(tmp_path, suffix, content, message):
    if suffix == 'pt' and content:
        pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    path = tmp_path / f'bad.{suffix}'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        Detector(model_path=path)
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_truncated_model_is_refused(constant_model):
    path = constant_model(ROWS)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelFileError, match='cannot load'):
        OnnxBackend(path).activate()


@pytest.mark.skipif(
    'CUDAExecutionProvider' in onnxruntime.get_available_providers(),
    reason='this ONNX Runtime has CUDA',
)
def test_cuda_without_cuda_is_refused(constant_model):
    with pytest.raises(BackendError, match='no CUDA'):
        OnnxBackend(constant_model(ROWS), device='cuda').activate()


@pytest.mark.parametrize('device', ['gpu', 'cuda:x', ''])
def test_unknown_device_is_refused(constant_model, device):
    with pytest.raises(BackendError, match='unknown device'):
        OnnxBackend(constant_model(ROWS), device=device).activate()


def test_asked_for_providers_must_exist(constant_model):
    path = constant_model(ROWS)
    with OnnxBackend(path, providers=['CPUExecutionProvider']) as backend:
        assert backend.providers == ['CPUExecutionProvider']
    with pytest.raises(BackendError, match=r'lacks NoSuchProvider: it has .*CPU'):
        OnnxBackend(path, providers=['NoSuchProvider']).activate()


def test_a_backend_is_its_abstract_methods():
    with pytest.raises(TypeError, match='abstract'):
        Backend('model.onnx')  # type: ignore[abstract]


def test_checkpoint_runs_as_ultralytics_runs_it(checkpoint):
    torch = pytest.importorskip('torch', reason='needs `make setup-training`')
    ultralytics = pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    blob = np.random.default_rng(0).random((2, 3, 64, 96), np.float32)
    with backend_class('pytorch')(checkpoint, device='cpu') as backend:
        assert backend.input_spec.shape == (None, 3, None, None)
        assert backend.metadata['names'] == "{0: '0'}"
        assert backend.metadata['stride'] == '32'
        assert backend.metadata['task'] == 'detect'
        (output,) = backend.infer(blob)
    with torch.inference_mode():
        expected = ultralytics.YOLO(str(checkpoint)).model.float().eval()(torch.from_numpy(blob))
    assert output.shape == (2, 5, 126)
    np.testing.assert_allclose(output, expected[0].numpy(), atol=1e-3)


def test_name_that_cannot_be_downloaded_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match=r'no_such_model\.pt') as caught:
        Detector(model_path='no_such_model.pt')
    assert '\n' not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_path_that_is_missing_is_not_looked_for_elsewhere(tmp_path):
    with pytest.raises(ModelFileError, match='model file not found'):
        Detector(model_path=tmp_path / 'yolov8n.pt')
