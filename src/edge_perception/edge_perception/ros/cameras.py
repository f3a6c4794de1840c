"""Several cameras on one node: their names, and the parameter that gives them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge_perception.ros.parameters import ParameterError, parameter

_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)*')


@dataclass(frozen=True)
class CamerasParameters:
    """What a node that serves several cameras has."""

    cameras: str = parameter(
        '',
        'namespaces of the cameras, separated by commas or spaces; empty for one camera, in the '
        'namespace of the node',
    )


def camera_names(text: str) -> tuple[str, ...]:
    """The cameras of the parameter `cameras`: `('',)`, the node's own namespace, when it is empty.

    Raises:
        ParameterError: a name is no relative namespace, or is there twice.
    """
    names = tuple(name for name in re.split(r'[,\s]+', text) if name)
    for name in names:
        if not _NAME.fullmatch(name):
            raise ParameterError(
                f'cameras: {name!r} is no relative namespace, such as front or left/wide'
            )
    if len(set(names)) < len(names):
        raise ParameterError(f'cameras: {text!r} names a camera twice')
    return names or ('',)


def in_camera(camera: str, name: str) -> str:
    """The relative name of a topic or node of a camera."""
    return f'{camera}/{name}' if camera else name


def in_cameras(cameras: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    """The relative names of topics or nodes that each camera has."""
    return tuple(in_camera(camera, name) for camera in cameras for name in names)
