"""Errors of the detection library: one base, and a subclass for each cause."""

from __future__ import annotations

from edge_perception.types import EdgePerceptionError


class DetectionError(EdgePerceptionError):
    """Base of every error that the detection library raises on purpose."""


class ModelFileError(DetectionError):
    """The model file is missing, unreadable, or of a type that no backend reads."""


class UnsupportedTaskError(DetectionError):
    """The model is no object detector: a segmentation, pose, classification or OBB model."""


class LayoutError(DetectionError):
    """The model's output fits no known layout, or fits more than one."""


class LabelsError(DetectionError):
    """Class names are missing, malformed, or do not contain a wanted class."""


class BackendError(DetectionError):
    """A backend is unknown, not installed, cannot use the device, or failed to run the model."""


class InputSizeError(DetectionError):
    """The asked input size does not suit the model."""


class RangeError(DetectionError, ValueError):
    """A threshold or a limit lies outside its range."""


class OutputValueError(DetectionError):
    """The model's output contains NaN or infinite values."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
