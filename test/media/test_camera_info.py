"""Calibration files."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_perception.media import CameraInfo, MediaError, load_camera_info

CALIBRATION = """
image_width: 640
image_height: 480
camera_name: narrow_stereo/left
camera_matrix:
  rows: 3
  cols: 3
  data: [438.78, 0., 305.59, 0., 437.34, 243.74, 0., 0., 1.]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.36, 0.13, -0.0002, 0.0005, 0]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1, 0, 0, 0, 1, 0, 0, 0, 1]
projection_matrix:
  rows: 3
  cols: 4
  data: [393.65, 0, 322.79, 0, 0, 393.65, 241.09, 0, 0, 0, 1, 0]
"""


def _file(tmp_path: Path, text: str = CALIBRATION) -> Path:
    path = tmp_path / 'camera.yaml'
    path.write_text(text, encoding='utf-8')
    return path


def test_file_of_the_calibrator(tmp_path: Path) -> None:
    """All fields, numbers as float."""
    assert load_camera_info(_file(tmp_path)) == CameraInfo(
        width=640,
        height=480,
        k=(438.78, 0, 305.59, 0, 437.34, 243.74, 0, 0, 1),
        d=(-0.36, 0.13, -0.0002, 0.0005, 0),
        r=(1, 0, 0, 0, 1, 0, 0, 0, 1),
        p=(393.65, 0, 322.79, 0, 0, 393.65, 241.09, 0, 0, 0, 1, 0),
        distortion_model='plumb_bob',
        frame_id='narrow_stereo/left',
    )
    assert load_camera_info(_file(tmp_path), 'optical').frame_id == 'optical'


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('camera_matrix', 'matrix', "the field 'camera_matrix' is missing"),
        ('[1, 0, 0, 0, 1, 0, 0, 0, 1]', '[1, 0]', r'CameraInfo\.r: expected 9 numbers, got 2'),
        ('438.78', 'wide', 'a field has the wrong type'),
        ('image_width: 640', 'image_width: [', 'not a calibration file'),
        (CALIBRATION, '- 1\n- 2\n', 'expected a mapping of fields'),
        (CALIBRATION, '', 'expected a mapping of fields'),
    ],
)
def test_wrong_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    """The error names the file and the field, on one line."""
    path = _file(tmp_path, CALIBRATION.replace(old, new))
    with pytest.raises(MediaError, match=message) as raised:
        load_camera_info(path)
    assert str(path) in str(raised.value)
    assert '\n' not in str(raised.value)


def test_missing_file(tmp_path: Path) -> None:
    """With the nearest name."""
    _file(tmp_path)
    with pytest.raises(MediaError, match=r'did you mean .*camera\.yaml'):
        load_camera_info(tmp_path / 'camera.yml')
