"""Who may import whom: the libraries know nothing of ROS and nothing of one another."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parent.parent / 'src' / 'edge_perception' / 'edge_perception'

LIBRARIES = ('api', 'detection', 'media', 'metrics', 'tracking')
ROS_MODULES = {'ament_index_python', 'builtin_interfaces', 'cv_bridge', 'launch', 'launch_ros'}


def imported_modules(source: str, package: str = '') -> set[str]:
    """Full names of all that a source imports, inside functions and type checks too.

    `from a import b` counts as `a.b`, because b may be a module. `package` is where the source
    lies, which relative imports start from.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parts = package.split('.')
                base = '.'.join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            names |= {f'{base}.{alias.name}' for alias in node.names}
    return names


def breaches(source: str, library: str) -> set[str]:
    """What a source of a library imports although it must not."""
    forbidden = set()
    for name in imported_modules(source, f'edge_perception.{library}'):
        top, *rest = name.split('.')
        if top == 'edge_perception':
            allowed = rest[:1] in ([library], ['types'])
        else:
            allowed = not (top.startswith('rcl') or top.endswith('_msgs') or top in ROS_MODULES)
        if not allowed:
            forbidden.add(name)
    return forbidden


@pytest.mark.parametrize(
    ('source', 'expected'),
    [
        ('import rclpy', {'rclpy'}),
        ('def f():\n    from vision_msgs.msg import Pose2D', {'vision_msgs.msg.Pose2D'}),
        ('import edge_perception.tracking.sort', {'edge_perception.tracking.sort'}),
        ('from edge_perception import media', {'edge_perception.media'}),
        ('from .. import ros', {'edge_perception.ros'}),
        ('from ..nodes.demo import main', {'edge_perception.nodes.demo.main'}),
        ('import numpy\nfrom . import nms\nfrom .nms import suppress', set()),
        ('from edge_perception.types import Frame\nfrom edge_perception import types', set()),
    ],
)
def test_breaches_are_found(source: str, expected: set[str]) -> None:
    assert breaches(source, 'detection') == expected


@pytest.mark.parametrize('library', LIBRARIES)
def test_library_imports_neither_ros_nor_another_library(library: str) -> None:
    paths = sorted((SOURCES / library).rglob('*.py'))
    assert paths
    found = {str(path.relative_to(SOURCES)): breaches(path.read_text(), library) for path in paths}
    assert {path: names for path, names in found.items() if names} == {}


def test_types_need_numpy_only() -> None:
    tops = {name.split('.')[0] for name in imported_modules((SOURCES / 'types.py').read_text())}
    known = {'__future__', 'collections', 'dataclasses', 'enum', 'functools', 'typing'}
    known |= {'typing_extensions'}
    assert tops - known == {'numpy'}
