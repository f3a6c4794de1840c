"""What all tests share."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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
def demo_clip() -> Path:
    """395 frames of pedestrians, 768x576, 10 Hz."""
    return REPOSITORY / 'test' / 'data' / 'pedestrians.mp4'


@pytest.fixture(scope='session')
def default_model() -> Path:
    """The model that the project ships: one class, person, 416 pixels."""
    return REPOSITORY / 'models' / 'person_416.onnx'
