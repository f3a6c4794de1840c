from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import build_tensorrt
import calibrate_int8
import calibration
import cv2
import numpy as np
import onnx
import pytest

from edge_perception.detection import BackendError, Detector, ModelFileError
from edge_perception.detection.backends import tensorrt as backend
from edge_perception.detection.engine_file import read_engine, read_sidecar, sha256_of

trt = pytest.importorskip('tensorrt_rtx_bindings', reason='needs `make setup-training`')

SMALL = ['--min', '1x3x320x320', '--opt', '1x3x416x416', '--max', '2x3x416x416']


@pytest.fixture
def model(default_model, tmp_path):
    path = tmp_path / 'person.onnx'
    path.write_bytes(default_model.read_bytes())
    return path


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(2):
        cv2.imwrite(str(folder / f'{number}.png'), random.integers(0, 256, (64, 96, 3), np.uint8))
    return folder


def files_of(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize('precision', ['fp32', 'fp16', 'int8'])
def test_engine_with_header_and_sidecar(model, images, tmp_path, capsys, precision):
    status = build_tensorrt.main(
        ['--model', str(model), '--precision', precision, '--calibration', str(images), *SMALL]
    )
    assert status == 0
    assert precision in capsys.readouterr().out
    engine = tmp_path / 'person.engine'
    assert files_of(tmp_path) == ['person.engine', 'person.engine.json', 'person.onnx']
    content = engine.read_bytes()
    length = int.from_bytes(content[:4], 'little')
    header = json.loads(content[4 : 4 + length])
    assert header['names'] == "{0: 'person'}"
    assert header['imgsz'] == '[416, 416]'
    metadata, plan = read_engine(engine)
    assert metadata == header
    assert plan == content[4 + length :]
    assert len(plan) > 1e6
    sidecar = read_sidecar(engine)
    assert sidecar.precision == precision
    assert sidecar.int8_method == ('qdq' if precision == 'int8' else '')
    assert sidecar.tensorrt == f'tensorrt_rtx {trt.__version__}'
    assert sidecar.onnx_sha256 == sha256_of(model)
    assert sidecar.engine_sha256 == sha256_of(engine)
    assert sidecar.profile['max'] == [2, 3, 416, 416]
    assert sidecar.labels == {'0': 'person'}
    assert sidecar.command.startswith('python model_tools/build_tensorrt.py --model')


def test_precision_is_in_the_plan(model, images, tmp_path):
    sizes = {}
    for precision in ('fp32', 'fp16'):
        out = tmp_path / f'{precision}.engine'
        build_tensorrt.build_engine(model, out, precision=precision)
        sizes[precision] = out.stat().st_size
    assert sizes['fp16'] < 0.85 * sizes['fp32']


def test_profile_defaults_are_those_of_the_manual_for_a_640_model():
    profile = build_tensorrt.profile_for(
        (None, 3, None, None), (640, 640), least=None, usual=None, greatest=None
    )
    assert profile == build_tensorrt.Profile(
        (1, 3, 480, 480), (1, 3, 640, 640), (4, 3, 1280, 1280)
    )


def test_profile_defaults_widen_to_the_size_of_the_model():
    profile = build_tensorrt.profile_for(
        (None, 3, None, None), (416, 416), least=None, usual=None, greatest=None
    )
    assert profile == build_tensorrt.Profile(
        (1, 3, 416, 416), (1, 3, 416, 416), (4, 3, 1280, 1280)
    )


def test_profile_of_a_fixed_model_is_its_shape():
    profile = build_tensorrt.profile_for(
        (1, 3, 320, 320), (320, 320), least=None, usual=None, greatest=None
    )
    assert profile.least == profile.usual == profile.greatest == (1, 3, 320, 320)


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        (['--min', '1x3x640x640', '--opt', '1x3x640x640'], 'excludes single images of the input'),
        (['--max', '1x3x320x320', '--min', '1x3x320x320'], 'excludes single images of the input'),
        (['--opt', '8x3x416x416'], 'must be at least the one before'),
        (['--precision', 'int8'], 'INT8 needs --calibration'),
        (['--precision', 'int8', '--calibration', 'IMAGES', '--int8-method', 'entropy'],
         'has no calibrators any more'),
        (['--precision', 'int8', '--calibration', 'EMPTY'], 'no calibration images'),
        (['--out', 'x.plan'], r'must end in .engine'),
        (['--model', 'absent.onnx'], 'model file not found'),
    ],
)  # fmt: skip
def test_error_is_one_line_and_leaves_nothing(model, images, tmp_path, capsys, extra, message):
    (tmp_path / 'empty').mkdir()
    named = {'IMAGES': str(images), 'EMPTY': str(tmp_path / 'empty')}
    before = files_of(tmp_path)
    status = build_tensorrt.main(['--model', str(model), *(named.get(e, e) for e in extra)])
    assert status == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith('build_tensorrt: ')
    assert message in error[-1]
    assert files_of(tmp_path) == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]


def test_other_task_is_refused(model, tmp_path, capsys):
    graph = onnx.load(model)
    metadata = {item.key: item.value for item in graph.metadata_props}
    onnx.helper.set_model_props(graph, {**metadata, 'task': 'segment'})
    onnx.save(graph, model)
    assert build_tensorrt.main(['--model', str(model)]) == 1
    assert "task 'segment'" in capsys.readouterr().err
    assert files_of(tmp_path) == ['person.onnx']


def test_interruption_leaves_nothing(model, tmp_path, monkeypatch, capsys):
    class Interrupted(build_tensorrt.Progress):
        def update(self, *args, **kwargs):
            raise KeyboardInterrupt

    monkeypatch.setattr(build_tensorrt, 'Progress', Interrupted)
    assert build_tensorrt.main(['--model', str(model), *SMALL]) == 130
    assert 'no file was written' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['person.onnx']


def test_full_disk_leaves_nothing(model, full_disk, capsys):
    out = full_disk / 'person.engine'
    assert build_tensorrt.main(['--model', str(model), '--out', str(out), *SMALL]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'cannot write' in error
    assert 'No space left' in error
    assert os.listdir(full_disk) == []


def test_cache_of_ranges_is_keyed_by_model_images_version_and_method(model, tmp_path):
    class Other:
        __name__ = 'tensorrt'
        __version__ = '10.3.0'

    blobs = [np.zeros((1, 3, 32, 32), np.float32)]
    others = [np.ones((1, 3, 32, 32), np.float32)]
    changed = tmp_path / 'other' / 'person.onnx'
    changed.parent.mkdir()
    changed.write_bytes(model.read_bytes() + b' ')
    names = {
        calibrate_int8.cache_path(tmp_path, *args).name
        for args in (
            (model, blobs, trt, 'entropy'),
            (model, blobs, trt, 'minmax'),
            (model, blobs, Other, 'entropy'),
            (model, others, trt, 'entropy'),
            (changed, blobs, trt, 'entropy'),
        )
    }
    assert len(names) == 5
    assert calibrate_int8.cache_path(tmp_path, model, blobs, trt, 'entropy').name in names


@pytest.mark.parametrize(
    ('calibrators', 'gpu', 'method'),
    [
        pytest.param(True, object(), 'minmax', id='TensorRT up to 10'),
        pytest.param(True, None, 'qdq', id='a calibrator runs on a GPU'),
        pytest.param(False, object(), 'qdq', id='TensorRT 11'),
    ],
)
def test_auto_calibrates_where_tensorrt_can(calibrators, gpu, method):
    trt = types.SimpleNamespace(__name__='tensorrt', __version__='0')
    if calibrators:
        trt.IInt8EntropyCalibrator2 = trt.IInt8MinMaxCalibrator = object
    assert calibrate_int8.choose_method('auto', trt, gpu) == method


def test_calibration_alone_writes_a_graph_that_onnx_runtime_runs_too(model, images, tmp_path):
    assert calibrate_int8.main(['--model', str(model), '--calibration', str(images)]) == 0
    out = tmp_path / 'person.trt_int8.onnx'
    kinds = {node.op_type for node in onnx.load(out).graph.node}
    assert {'QuantizeLinear', 'DequantizeLinear'} <= kinds
    with Detector('onnx', model_path=out) as detector:
        assert detector.names == {0: 'person'}
        assert detector.image_hw == (416, 416)


def test_boxes_are_computed_in_floating_point(default_model):
    graph = onnx.load(default_model).graph
    nodes = {node.name: node for node in graph.node}
    kinds = [nodes[name].op_type for name in calibration.decode_nodes(graph)]
    assert kinds.count('Conv') == 1  # DFL's
    assert 'Softmax' in kinds
    assert 'Sigmoid' in kinds


@pytest.fixture
def engine(model, tmp_path):
    build_tensorrt.build_engine(
        model, tmp_path / 'person.engine', precision='fp32', command='make it'
    )
    return tmp_path / 'person.engine'


def rewrite(engine, **changes):
    path = engine.with_name(engine.name + '.json')
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ('changes', 'here', 'message'),
    [
        (
            {'tensorrt': 'tensorrt 10.3.0'},
            {},
            'was built by tensorrt 10.3.0, here is tensorrt_rtx',
        ),
        ({'gpu': 'Orin'}, {'gpu': 'NVIDIA H200'}, 'was built for Orin, here is NVIDIA H200'),
        (
            {'compute_capability': '8.7'},
            {'capability': '9.0'},
            'compute capability 8.7, here is 9.0',
        ),
        ({'engine_sha256': 'x'}, {}, 'is not the file that its sidecar describes'),
        ({'onnx_sha256': 'x'}, {}, 'was built from another person.onnx than the one beside it'),
    ],
)
def test_engine_that_does_not_fit_is_refused_with_the_command(engine, changes, here, message):
    backend.check_sidecar(engine, tensorrt=backend.tensorrt_label(trt), **here)
    rewrite(engine, **changes)
    with pytest.raises(BackendError, match=message) as caught:
        backend.check_sidecar(engine, tensorrt=backend.tensorrt_label(trt), **here)
    assert str(caught.value).endswith('build it again: make it')
    assert '\n' not in str(caught.value)


def test_damaged_sidecar_is_one_line(engine):
    engine.with_name('person.engine.json').write_text('{')
    with pytest.raises(ModelFileError, match='is damaged'):
        read_sidecar(engine)


def test_auto_falls_back_from_an_engine_that_does_not_fit(engine, model):
    rewrite(engine, tensorrt='tensorrt 10.3.0')
    for path in (engine, model):
        with Detector(model_path=path) as detector:
            assert detector.backend_name in ('onnx', 'openvino')
            assert detector.device in ('cpu', 'cuda:0')
            assert 'not tensorrt: person.engine was built by tensorrt 10.3.0' in detector.reason
            assert '\n' not in detector.reason


def test_auto_leaves_an_engine_of_another_model_alone(engine, model):
    rewrite(engine, onnx_sha256='0')
    with Detector(model_path=model) as detector:
        assert 'not person.engine: it was not built from this person.onnx' in detector.reason


def test_engine_alone_cannot_fall_back(engine, model):
    model.unlink()
    rewrite(engine, tensorrt='tensorrt 10.3.0')
    with pytest.raises(BackendError, match='build it again'):
        Detector(model_path=engine)


def has_gpu():
    code = 'from edge_perception.detection.backends.tensorrt import open_gpu; open_gpu(0)'
    return not subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        check=False,
    ).returncode


def test_engine_computes_what_onnx_runtime_computes(engine, model):
    if not has_gpu():
        pytest.skip('GPU: only one loads an engine and shows its outputs, speed and memory')
    blob = np.random.default_rng(0).random((2, 3, 416, 640), np.float32)
    with (
        backend.TensorRtBackend(engine) as tensorrt,
        Detector('onnx', model_path=model, device='cpu') as reference,
    ):
        expected = reference.backend.infer(blob)[0]
        np.testing.assert_allclose(tensorrt.infer(blob)[0], expected, atol=0.5)


def test_without_a_driver_the_reason_is_one_line(engine):
    if has_gpu():
        pytest.skip('GPU: there is one here')
    with pytest.raises(BackendError, match='no NVIDIA driver') as caught:
        Detector('tensorrt', model_path=engine)
    assert '\n' not in str(caught.value)
