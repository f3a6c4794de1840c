"""The calibration of a camera, and the YAML file that ROS's camera_calibration writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edge_perception.media.errors import MediaError, missing_path_error


@dataclass(frozen=True)
class CameraInfo:
    """The fields of sensor_msgs/CameraInfo that do not change from frame to frame.

    Attributes:
        width: image width in pixels.
        height: image height in pixels.
        k: 9 numbers, row-major 3x3 intrinsic matrix of the distorted image, pixels.
        d: distortion coefficients, as many as the model has.
        r: 9 numbers, row-major 3x3 rectification matrix.
        p: 12 numbers, row-major 3x4 projection matrix of the rectified image, pixels.
        distortion_model: `plumb_bob`, `rational_polynomial`, `equidistant` ...
        frame_id: coordinate frame of the camera (REP-105).
    """

    width: int
    height: int
    k: tuple[float, ...]
    d: tuple[float, ...]
    r: tuple[float, ...]
    p: tuple[float, ...]
    distortion_model: str = 'plumb_bob'
    frame_id: str = ''

    def __post_init__(self) -> None:
        if not 0 <= min(self.width, self.height) <= max(self.width, self.height) < 2**32:
            raise MediaError(f'CameraInfo: an image of {self.width} x {self.height} pixels')
        for name, size in (('k', 9), ('r', 9), ('p', 12)):
            values = getattr(self, name)
            if len(values) != size:
                raise MediaError(f'CameraInfo.{name}: expected {size} numbers, got {len(values)}')


def load_camera_info(path: str | Path, frame_id: str = '') -> CameraInfo:
    """Read a calibration file as camera_calibration and camera_info_manager write it.

    Args:
        path: the YAML file.
        frame_id: coordinate frame to give the result; the file's `camera_name` when empty.

    Raises:
        MediaError: no such file, no YAML, or a field is missing or of another size.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise missing_path_error(path)
    try:
        content: Any = yaml.safe_load(path.read_text(encoding='utf-8'))
    # PyYAML lets through what its constructors raise, on dates that there are not for one.
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        line = ' '.join(str(error).split())
        raise MediaError(f'{path}: not a calibration file: {line}') from error
    if not isinstance(content, dict):
        raise MediaError(f'{path}: not a calibration file: expected a mapping of fields')

    def matrix(name: str) -> tuple[float, ...]:
        return tuple(float(value) for value in content[name]['data'])

    try:
        return CameraInfo(
            width=int(content['image_width']),
            height=int(content['image_height']),
            k=matrix('camera_matrix'),
            d=matrix('distortion_coefficients'),
            r=matrix('rectification_matrix'),
            p=matrix('projection_matrix'),
            distortion_model=str(content['distortion_model']),
            frame_id=frame_id or str(content.get('camera_name', '')),
        )
    except KeyError as error:
        raise MediaError(f'{path}: the field {error} is missing') from error
    except (TypeError, ValueError, OverflowError) as error:
        raise MediaError(f'{path}: a field has the wrong type: {error}') from error
    except MediaError as error:
        raise MediaError(f'{path}: {error}') from error
