from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from edge_perception.detection import BackendError, Detector, InputSizeError, ModelFileError
from edge_perception.detection.backends.base import TensorSpec
from edge_perception.detection.backends.onnx import OnnxBackend
from edge_perception.detection.backends.openvino import OpenVinoBackend
from edge_perception.detection.canvas import Canvas
from edge_perception.detection.preprocess import Preprocessor


def test_computes_what_onnx_runtime_computes(default_model):
    random = np.random.default_rng(0)
    with (
        OpenVinoBackend(default_model, threads=1) as backend,
        OnnxBackend(default_model, device='cpu') as reference,
    ):
        assert backend.device == 'cpu'
        assert backend.precision == 'f32'
        assert backend.input_spec == reference.input_spec
        assert backend.metadata == reference.metadata
        for shape in ((1, 3, 416, 416), (3, 3, 320, 416)):
            blob = random.random(shape, np.float32)
            (output,), (expected,) = backend.infer(blob), reference.infer(blob)
            assert output.dtype == np.float32
            np.testing.assert_allclose(output, expected, atol=0.01)


def test_reports_to_nobody(default_model, tmp_path):
    """OpenVINO's telemetry notes in the home directory that, and as whom, it reports."""
    program = 'import sys; from edge_perception.detection import Detector; Detector("openvino", '
    program += 'model_path=sys.argv[1]).warm_up((48, 64)); assert "openvino" in sys.modules'
    environment = {name: value for name, value in os.environ.items() if name != 'CI'}
    environment |= {'HOME': str(tmp_path), 'PYTHONPATH': os.pathsep.join(sys.path)}
    command = [sys.executable, '-c', program, str(default_model)]
    subprocess.run(command, env=environment, check=True, timeout=60.0)
    assert list(tmp_path.iterdir()) == []


def test_activate_and_close_may_be_repeated(default_model):
    backend = OpenVinoBackend(default_model)
    backend.activate()
    backend.activate()
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match='not active'):
        backend.infer(np.zeros((1, 3, 64, 64), np.float32))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        pytest.param(None, 'model file not found', id='missing'),
        pytest.param(b'', 'model file is empty', id='empty'),
        pytest.param(b'no model at all' * 100, 'cannot load', id='corrupt'),
    ],
)
def test_unusable_file_is_one_line_with_its_name(tmp_path, content, message):
    path = tmp_path / 'bad.onnx'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        OpenVinoBackend(path).activate()
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_wrong_input_shape_is_one_line(default_model):
    with (
        OpenVinoBackend(default_model) as backend,
        pytest.raises(BackendError, match=r'input of shape \(1, 3, 33, 33\)') as caught,
    ):
        backend.infer(np.zeros((1, 3, 33, 33), np.float32))
    assert '\n' not in str(caught.value)


def test_a_gpu_is_not_for_it(default_model):
    with pytest.raises(BackendError, match='runs on the CPU only'):
        OpenVinoBackend(default_model, device='cuda').activate()


def test_auto_keeps_the_faster_engine(default_model, monkeypatch):
    """One engine is held up; the other must win, and the loser must be freed."""
    for slow, other in ((OnnxBackend, OpenVinoBackend), (OpenVinoBackend, OnnxBackend)):
        closed = []
        with monkeypatch.context() as patch:
            patch.setattr(slow, 'infer', _five_times(slow.infer))
            patch.setattr(slow, 'close', _noting(slow.close, closed))
            with Detector(model_path=default_model, device='cpu') as detector:
                assert detector.backend_name == other.name
                assert f'ms with {slow.name}' in detector.reason
                assert closed == [slow.name]


def _five_times(infer):
    def slow_infer(self, blob):
        for _ in range(4):
            infer(self, blob)
        return infer(self, blob)

    return slow_infer


def _noting(close, closed):
    def noting_close(self):
        closed.append(self.name)
        close(self)

    return noting_close


def test_auto_goes_on_without_an_engine_that_fails(default_model, monkeypatch):
    def failing(self, blob):
        raise BackendError('out of memory')

    monkeypatch.setattr(OpenVinoBackend, 'infer', failing)
    with Detector(model_path=default_model, device='cpu') as detector:
        assert detector.backend_name == 'onnx'
        assert 'openvino failed: out of memory' in detector.reason


def test_auto_without_openvino_says_so(default_model, monkeypatch):
    monkeypatch.setattr(OpenVinoBackend, 'unavailable_reason', classmethod(lambda cls: 'gone'))
    with Detector(model_path=default_model, device='cpu') as detector:
        assert detector.reason == 'onnx on cpu: reads .onnx; not openvino: gone'


LIMITED = TensorSpec(
    'images', np.dtype(np.float32), (None, 3, None, None), (1, 3, 320, 480), (4, 3, 640, 640)
)


def test_canvas_stays_within_the_limits_of_an_engine():
    canvas = Canvas.of(LIMITED, {'imgsz': '[640, 640]'}, None)
    assert canvas == Canvas((640, 640), 32, True, (320, 480))
    preprocess = Preprocessor(
        canvas.image_hw, rectangular=canvas.rectangular, smallest_hw=canvas.smallest_hw
    )
    tall = np.zeros((900, 100, 3), np.uint8)
    blob, (geometry,) = preprocess([tall])
    assert blob.shape == (1, 3, 640, 480)
    assert (geometry.left, geometry.width) == ((480 - 71) // 2, 71)


@pytest.mark.parametrize('size', [256, 704, (640, 448)])
def test_size_outside_the_limits_is_refused_with_what_to_do(size):
    with pytest.raises(InputSizeError, match='build it again with other --min and --max'):
        Canvas.of(LIMITED, {}, size)


def test_uint8_frames_go_in_as_they_are():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    plain = Preprocessor((64, 64), rectangular=True)
    packed = Preprocessor(
        (64, 64), rectangular=True, scale=1.0, dtype=np.uint8, channels_last=True
    )
    expected, geometries = plain([image, image[::-1]])
    blob, same = packed([image, image[::-1]])
    assert same == geometries
    assert blob.shape == (2, 64, 64, 3)
    assert blob.flags.c_contiguous
    np.testing.assert_allclose(blob.transpose(0, 3, 1, 2) / 255, expected, atol=1e-6)
    assert packed.last_canvas_hw == (64, 64)
