from __future__ import annotations

import export_onnx
import numpy as np
import onnx
import pytest
from command_line import OutputError

from edge_perception.detection import Detector, ModelFileError, UnsupportedTaskError
from edge_perception.detection.backends.onnx import OnnxBackend

SHAPES = ((1, 64, 64), (2, 64, 96), (3, 160, 128))


@pytest.fixture(scope='module')
def exported(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp('exported') / 'tiny.onnx'
    parity = export_onnx.export_onnx(checkpoint, path, image_size=96, shapes=SHAPES)
    return path, parity


def test_file_is_dynamic_and_says_what_it_is(exported):
    path, _ = exported
    with OnnxBackend(path) as backend:
        assert backend.input_spec.shape == (None, 3, None, None)
        metadata = backend.metadata
    assert metadata['names'] == "{0: '0'}"
    assert metadata['stride'] == '32'
    assert metadata['task'] == 'detect'
    assert metadata['imgsz'] == '[96, 96]'
    with Detector(model_path=path) as detector:
        assert detector.image_hw == (96, 96)


def test_parity_holds_over_the_shapes(exported):
    _, parity = exported
    assert parity.shapes == len(SHAPES)
    assert parity.box_px <= export_onnx.BOX_TOLERANCE_PX
    assert parity.score <= export_onnx.SCORE_TOLERANCE


def test_default_shapes_span_what_is_promised():
    shapes = export_onnx.PARITY_SHAPES
    assert len(shapes) >= 6
    assert (1, 320, 320) in shapes
    assert (4, 1280, 1280) in shapes
    assert any(height != width for _, height, width in shapes)


def test_nothing_of_this_machine_is_in_the_file(exported, checkpoint):
    path, _ = exported
    content = path.read_bytes()
    assert str(path.parent).encode() not in content
    assert str(checkpoint.parent).encode() not in content
    assert all(not node.doc_string for node in onnx.load(path).graph.node)


def test_opset_is_as_asked(checkpoint, tmp_path):
    path = tmp_path / 'old.onnx'
    export_onnx.export_onnx(checkpoint, path, image_size=64, opset=12, shapes=SHAPES[:1])
    assert [item.version for item in onnx.load(path).opset_import if not item.domain] == [12]


def test_other_weights_are_seen_by_the_gate(exported, checkpoint, tmp_path):
    path, _ = exported
    model = onnx.load(path)
    # The box branch of the first feature map: an untrained network's other weights hardly count.
    (bias,) = [item for item in model.graph.initializer if item.name.endswith('cv2.0.2.bias')]
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 0.1
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    other = tmp_path / 'other.onnx'
    onnx.save(model, other)
    parity = export_onnx.compare(checkpoint, other, SHAPES[:1])
    assert parity.box_px > export_onnx.BOX_TOLERANCE_PX


def test_file_that_fails_the_gate_is_not_left(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, 'BOX_TOLERANCE_PX', -1.0)
    with pytest.raises(export_onnx.ExportError, match='no file was written'):
        export_onnx.export_onnx(checkpoint, tmp_path / 'a.onnx', image_size=64, shapes=SHAPES[:1])
    assert list(tmp_path.iterdir()) == []


def test_old_file_survives_a_failed_export(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / 'a.onnx'
    path.write_bytes(b'old')
    monkeypatch.setattr(export_onnx, 'SCORE_TOLERANCE', -1.0)
    with pytest.raises(export_onnx.ExportError):
        export_onnx.export_onnx(checkpoint, path, image_size=64, shapes=SHAPES[:1])
    assert path.read_bytes() == b'old'


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('a.onnx', {'opset': 11}, 'at least 12'),
        ('a.engine', {}, r'must end in \.onnx'),
        ('a.onnx', {'image_size': 100}, 'no multiple of the stride 32'),
    ],
)
def test_wrong_arguments(checkpoint, tmp_path, name, options, message):
    with pytest.raises(export_onnx.ExportError, match=message):
        export_onnx.export_onnx(checkpoint, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_missing_checkpoint(tmp_path):
    with pytest.raises(ModelFileError, match='not found'):
        export_onnx.export_onnx(tmp_path / 'no.pt', tmp_path / 'a.onnx')


def test_segmentation_checkpoint_is_refused(tmp_path):
    ultralytics = pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    path = tmp_path / 'seg.pt'
    ultralytics.YOLO('yolov8n-seg.yaml').save(str(path))
    with pytest.raises(UnsupportedTaskError, match='segment'):
        export_onnx.export_onnx(path, tmp_path / 'a.onnx')
    assert [item.name for item in tmp_path.iterdir()] == ['seg.pt']


def test_command_line_reports_size_and_parity(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export_onnx, 'PARITY_SHAPES', SHAPES)
    out = tmp_path / 'a.onnx'
    status = export_onnx.main(['--model', str(checkpoint), '--out', str(out), '--imgsz', '64'])
    assert status == 0
    assert 'over 3 input shapes it differs' in capsys.readouterr().out
    assert out.is_file()


@pytest.fixture
def three_at_once(monkeypatch):
    """Unrolled for few images, the graph is exported in seconds."""
    monkeypatch.setattr(export_onnx, 'END2END_BATCH', 3)


@pytest.mark.parametrize(('uint8_input', 'end2end'), [(True, False), (True, True)])
def test_other_inputs_and_outputs_find_the_same(
    checkpoint, tmp_path, three_at_once, uint8_input, end2end
):
    path = tmp_path / 'other.onnx'
    parity = export_onnx.export_onnx(
        checkpoint, path, image_size=96, shapes=SHAPES, uint8_input=uint8_input, end2end=end2end
    )
    assert parity.box_px <= export_onnx.BOX_TOLERANCE_PX
    frames = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3), np.uint8)
    settings = {'score_threshold': 0.001, 'iou_threshold': export_onnx.END2END_IOU}
    with Detector(model_path=checkpoint, image_size=96, device='cpu', **settings) as detector:
        expected = detector(list(frames))
    for backend in ('onnx', 'openvino'):
        with Detector(backend, model_path=path, **settings) as detector:
            assert detector.layout.value == ('end2end' if end2end else 'v8')
            assert detector.backend.input_spec.channels_last == uint8_input
            found = detector(list(frames))
        for before, after in zip(expected, found, strict=True):
            assert abs(len(before) - len(after)) <= 1
            for box in before.xyxy[:3]:
                assert np.abs(after.xyxy - box).max(axis=1).min() < 0.05


def test_more_images_than_the_graph_has_room_for_are_split(checkpoint, tmp_path, three_at_once):
    path = tmp_path / 'end2end.onnx'
    export_onnx.export_onnx(checkpoint, path, image_size=64, shapes=SHAPES[:1], end2end=True)
    frames = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    with Detector('onnx', model_path=path, score_threshold=0.001) as detector:
        counts = [len(item) for item in detector([frames[0]] * (export_onnx.END2END_BATCH + 2))]
    assert min(counts) == max(counts) > 0


def test_half_needs_labels_and_is_judged_by_them(
    checkpoint, squares, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(export_onnx, 'PARITY_SHAPES', SHAPES)
    out = tmp_path / 'half.onnx'
    arguments = ['--model', str(checkpoint), '--out', str(out), '--imgsz', '64', '--half']
    with pytest.raises(SystemExit):
        export_onnx.main(arguments)
    assert 'needs labels' in capsys.readouterr().err
    squares.write_text(squares.read_text().replace('square', "'0'"))
    assert export_onnx.main([*arguments, '--data', str(squares)]) == 0
    assert 'FP16: mAP50-95' in capsys.readouterr().out
    kinds = {item.data_type for item in onnx.load(out).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    refused = [*arguments, '--data', str(squares), '--max-map-drop', '-1']
    refused[3] = str(tmp_path / 'refused.onnx')
    assert export_onnx.main(refused) == 1
    assert 'fp16 loses 0.00 points' in capsys.readouterr().err
    assert not (tmp_path / 'refused.onnx').exists()


def test_full_disk_leaves_nothing(checkpoint, full_disk):
    with pytest.raises(OutputError, match='No space left'):
        export_onnx.export_onnx(checkpoint, full_disk / 'a.onnx', image_size=64, shapes=SHAPES[:1])
    assert list(full_disk.iterdir()) == []
