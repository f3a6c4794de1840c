"""Object detection: a frame in, Detections out. Knows nothing of ROS."""

from edge_perception.detection.detector import Detector
from edge_perception.detection.errors import (
    BackendError,
    DetectionError,
    InputSizeError,
    LabelsError,
    LayoutError,
    ModelFileError,
    OutputValueError,
    RangeError,
    UnsupportedTaskError,
)

__all__ = [
    'BackendError',
    'DetectionError',
    'Detector',
    'InputSizeError',
    'LabelsError',
    'LayoutError',
    'ModelFileError',
    'OutputValueError',
    'RangeError',
    'UnsupportedTaskError',
]
