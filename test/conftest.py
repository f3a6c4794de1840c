"""What all tests share."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

# An example may take as long as a loaded machine makes it take, and drawing any finite float32
# throws some draws away; neither is a defect of what is tested.
settings.register_profile(
    'edge_perception',
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile('edge_perception')

# Where ROS's launch is installed, its pytest plugin makes every new logger one that caplog and
# pytest do not hear.
logging.setLoggerClass(logging.Logger)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def reference_data() -> Path:
    """Folder with data/ and models/ to measure with, which lie outside the project."""
    folder = Path(os.environ.get('EDGE_PERCEPTION_REFERENCE_DATA', REPOSITORY.parent / 'shared'))
    if not (folder / 'data' / 'MANIFEST.md').is_file():
        pytest.skip('reference data is not here: set EDGE_PERCEPTION_REFERENCE_DATA')
    return folder


@pytest.fixture(scope='session')
def new_domain_id() -> Callable[[], int]:
    """Gives ROS domains in which nobody is: nodes of the same name must not hear each other."""
    from edge_perception.ros.transport import unused_domain_id

    return unused_domain_id


@pytest.fixture(scope='session')
def free_port() -> Callable[[], int]:
    """Finds a TCP port on which nobody listens."""

    def free_port() -> int:
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            return int(probe.getsockname()[1])

    return free_port


@pytest.fixture(scope='session')
def demo_clip() -> Path:
    """395 frames of pedestrians, 768x576, 10 Hz."""
    return REPOSITORY / 'test' / 'data' / 'pedestrians.mp4'


@pytest.fixture(scope='session')
def people(demo_clip: Path) -> NDArray[np.uint8]:
    """(576, 768, 3) BGR picture with people, the first of the clip; all tests share it."""
    from edge_perception import media  # not sooner: its loggers would be of the other kind

    with media.open_source(demo_clip) as source:
        image = next(source).image
    image.flags.writeable = False
    return image


@pytest.fixture(scope='session')
def jpeg(people: NDArray[np.uint8]) -> bytes:
    """The picture as JPEG."""
    return cv2.imencode('.jpg', people)[1].tobytes()


@pytest.fixture(scope='session')
def default_model() -> Path:
    """The model that the project ships: one class, person, 416 pixels."""
    return REPOSITORY / 'models' / 'person_416.onnx'


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained YOLOv8 checkpoint with one class, which Ultralytics calls 0."""
    ultralytics = pytest.importorskip('ultralytics', reason='needs `make setup-training`')
    model = REPOSITORY / 'model_tools' / 'yolov8p.yaml'
    path = tmp_path_factory.mktemp('checkpoint') / 'untrained.pt'
    ultralytics.YOLO(str(model), task='detect').save(str(path))
    return path


class Clock:
    """A clock that stands still: the test moves `now_s`."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """The time for what takes its clock as a parameter."""
    return Clock()


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a folder that is a disk of a size as `mount` takes it, such as 64k."""
    mounted: list[Path] = []

    def disk_of(size: str) -> Path:
        folder = tmp_path / f'disk_{size}'
        folder.mkdir()
        command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip('another filesystem cannot be mounted here, which takes root')
        mounted.append(folder)
        return folder

    yield disk_of
    for folder in mounted:
        subprocess.run(['umount', str(folder)], check=True)
