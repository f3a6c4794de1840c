"""Where installed files of this package are."""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory

DEFAULT_MODEL = 'person_416.onnx'


def share_folder() -> Path:
    """share/edge_perception of the installation, with launch, config and models."""
    return Path(get_package_share_directory('edge_perception'))


def find_model(name: str) -> str:
    """The path of a model given by path, or by the file name of one that is installed.

    A name that is neither is returned as it is: the backend says what is wrong with it, or, as
    for `yolov8n.pt`, knows where to get it.
    """
    if Path(name).exists():
        return name
    installed = share_folder() / 'models' / name
    return str(installed) if installed.exists() else name
