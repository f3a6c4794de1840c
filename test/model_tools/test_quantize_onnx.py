from __future__ import annotations

import os

import calibration
import cv2
import numpy as np
import onnx
import pytest
import quantize_onnx

from edge_perception.detection import Detector
from edge_perception.media import open_source


@pytest.fixture
def frames(demo_clip):
    with open_source(demo_clip) as source:
        return [frame.image.copy() for frame, _ in zip(source, range(41), strict=False)][::20]


@pytest.fixture
def calibration_images(frames, tmp_path):
    folder = tmp_path / 'calibration'
    folder.mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f'{number}.png'), frame)
    return folder


@pytest.fixture
def labels(default_model, frames, tmp_path):
    """The frames, labelled with what the default model finds."""
    for kind in ('images', 'labels'):
        (tmp_path / 'set' / kind / 'val').mkdir(parents=True)
    with Detector('onnx', model_path=default_model, score_threshold=0.4) as detector:
        for number, frame in enumerate(frames):
            cv2.imwrite(str(tmp_path / 'set' / 'images' / 'val' / f'{number}.png'), frame)
            size = np.array([768, 576, 768, 576])
            lines = []
            for box in detector(frame).xyxy / size:
                centre, extent = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
                lines.append('0 ' + ' '.join(map(str, [*centre, *extent])) + '\n')
            path = tmp_path / 'set' / 'labels' / 'val' / f'{number}.txt'
            path.write_text(''.join(lines))
    data = tmp_path / 'set' / 'data.yaml'
    data.write_text('val: images/val\nnames: [person]\n')
    return data


@pytest.fixture
def arguments(default_model, calibration_images, labels, tmp_path):
    out = tmp_path / 'out' / 'small.onnx'
    out.parent.mkdir()
    return [
        '--model', str(default_model), '--calibration', str(calibration_images),
        '--data', str(labels), '--out', str(out),
    ]  # fmt: skip


def test_int8_file_is_small_accurate_and_runs_on_both_engines(
    arguments, default_model, frames, tmp_path, capsys
):
    assert quantize_onnx.main([*arguments, '--max-map-drop', '30']) == 0
    out = tmp_path / 'out' / 'small.onnx'
    assert out.stat().st_size < 0.4 * default_model.stat().st_size
    assert os.listdir(out.parent) == ['small.onnx']
    assert 'mAP50-95' in capsys.readouterr().out
    with Detector('onnx', model_path=default_model, score_threshold=0.5) as detector:
        expected = detector(frames[1])
    for backend in ('onnx', 'openvino'):
        with Detector(backend, model_path=out, score_threshold=0.4) as detector:
            assert detector.names == {0: 'person'}
            assert detector.backend.metadata['precision'] == 'int8'
            found = detector(frames[1])
        for box in expected.xyxy:
            assert np.abs(found.xyxy - box).max(axis=1).min() < 12


def test_fp16_keeps_the_boxes(arguments, default_model, tmp_path, capsys):
    assert quantize_onnx.main([*arguments, '--to', 'fp16', '--max-map-drop', '10']) == 0
    out = tmp_path / 'out' / 'small.onnx'
    assert out.stat().st_size < 0.6 * default_model.stat().st_size
    blob = np.random.default_rng(0).random((1, 3, 416, 416), np.float32)
    with (
        Detector('onnx', model_path=default_model) as before,
        Detector('onnx', model_path=out) as after,
    ):
        boxes = [item.backend.infer(blob)[0][0, :4] for item in (before, after)]
    assert np.abs(boxes[0] - boxes[1]).max() < 2


def test_bf16_is_a_permission(arguments, default_model, tmp_path):
    assert quantize_onnx.main([*arguments, '--to', 'bf16', '--max-map-drop', '30']) == 0
    with Detector('openvino', model_path=tmp_path / 'out' / 'small.onnx') as detector:
        import openvino

        able = openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
        assert detector.backend.precision == ('bf16' if 'BF16' in able else 'f32')
    with Detector('openvino', model_path=default_model) as detector:
        assert detector.backend.precision == 'f32'


def test_file_that_loses_too_much_is_refused_with_both_numbers(arguments, tmp_path, capsys):
    assert quantize_onnx.main([*arguments, '--max-map-drop', '-100']) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'quantize_onnx: int8 loses' in error
    assert 'before' in error
    assert 'after' in error
    assert 'no file was written' in error
    assert os.listdir(tmp_path / 'out') == []


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        (['--calibration', 'EMPTY'], 'no calibration images'),
        (['--calibration', 'absent.mp4'], 'absent.mp4'),
        (['--model', 'absent.onnx'], 'model file not found'),
        (['--out', 'a.engine'], r'must end in .onnx'),
        (['--split', 'test'], "no split 'test'"),
    ],
)
def test_error_is_one_line_and_leaves_nothing(arguments, tmp_path, capsys, extra, message):
    (tmp_path / 'empty').mkdir()
    extra = [item.replace('EMPTY', str(tmp_path / 'empty')) for item in extra]
    assert quantize_onnx.main([*arguments, *extra]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('quantize_onnx: ')
    assert message in error
    assert os.listdir(tmp_path / 'out') == []


def test_interruption_leaves_nothing(arguments, tmp_path, monkeypatch, capsys):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, 'quantize', interrupted)
    assert quantize_onnx.main(arguments) == 130
    assert os.listdir(tmp_path / 'out') == []
    assert 'no file was written' in capsys.readouterr().err


def test_full_disk_leaves_nothing(arguments, full_disk, capsys):
    arguments[-1] = str(full_disk / 'small.onnx')
    assert quantize_onnx.main(arguments) == 1
    assert 'No space left' in capsys.readouterr().err
    assert os.listdir(full_disk) == []


def test_weights_have_seven_bits_where_eight_overflow(default_model, tmp_path):
    blobs = [np.random.default_rng(0).random((1, 3, 64, 64), np.float32)]
    largest = {}
    for reduce_range in (True, False):
        out = tmp_path / f'{reduce_range}.onnx'
        calibration.quantize(default_model, out, blobs, reduce_range=reduce_range)
        weights = [
            onnx.numpy_helper.to_array(item)
            for item in onnx.load(out).graph.initializer
            if item.data_type == onnx.TensorProto.INT8 and len(item.dims) == 4
        ]
        largest[reduce_range] = max(int(np.abs(item.astype(int)).max()) for item in weights)
    assert largest[True] <= 64
    assert largest[False] > 100


def test_calibration_images_are_spread_over_a_video(demo_clip):
    images = calibration.read_images(str(demo_clip), 4)
    with open_source(demo_clip) as source:
        frames = [frame.image.copy() for frame, _ in zip(source, range(300), strict=False)]
    assert len(images) == 4
    np.testing.assert_array_equal(images[3], frames[3 * (395 // 4)])
