"""Arguments of the launch files that stand for parameters of nodes.

An argument that is left empty leaves its parameter as the parameters file has it. What the user
gives goes into a second parameters file, read after the first: only there a value can be given to
one node of a process that holds several, in any namespace (`-p node:name:=value` finds a node in
the root namespace only).

Nothing of `launch` is imported here, so that this also works where ROS 2 comes as wheels.
"""

from __future__ import annotations

import atexit
import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_perception.nodes.detector import DetectorParameters
from edge_perception.nodes.perception import EACH_CAMERA, PerceptionParameters
from edge_perception.nodes.source import SourceParameters
from edge_perception.nodes.tracker import TrackerParameters
from edge_perception.nodes.visualizer import VisualizerParameters
from edge_perception.ros.cameras import in_camera
from edge_perception.ros.parameters import ParameterError, ParameterSpec, specs

_PARAMETERS: dict[str, type] = {
    'perception': PerceptionParameters,
    'source': SourceParameters,
    'detector': DetectorParameters,
    'tracker': TrackerParameters,
    'visualizer': VisualizerParameters,
}


@dataclass(frozen=True)
class LaunchArgument:
    """A launch argument that sets a parameter of one or several nodes.

    Attributes:
        name: of the argument.
        spec: the parameter; its text and choices are those of the argument.
        nodes: names of the nodes that get it.
        when_empty: what holds when the argument is not given.
    """

    name: str
    spec: ParameterSpec
    nodes: tuple[str, ...]
    when_empty: str = 'as in params_file'

    @property
    def description(self) -> str:
        """What `ros2 launch --show-args` says."""
        limits = '' if self.spec.choices else self.spec.range_text()
        limits = f' ({limits})' if limits else ''
        return f'{self.spec.description}{limits}; empty: {self.when_empty}'

    @property
    def choices(self) -> list[str] | None:
        """The allowed texts, None when there is no list of them."""
        choices = ('true', 'false') if self.spec.type is bool else self.spec.choices
        return ['', *choices] if choices else None

    def parse(self, text: str) -> Any:
        """The value of the parameter.

        Raises:
            ParameterError: the text is no value of the parameter's type, or out of its range.
        """
        try:
            value = text == 'true' if self.spec.type is bool else self.spec.type(text)
        except ValueError as error:
            raise ParameterError(
                f'{self.name}:={text}: expected {self.spec.type.__name__}'
            ) from error
        self.spec.check(value)
        return value


def _argument(name: str, parameter: str, *nodes: str, **options: str) -> LaunchArgument:
    spec = next(item for item in specs(_PARAMETERS[nodes[0]]) if item.name == parameter)
    return LaunchArgument(name, spec, nodes, **options)


PARAMETER_ARGUMENTS = (
    _argument('cameras', 'cameras', 'perception', 'detector', 'metrics', 'gateway'),
    _argument(
        'source',
        'source',
        'source',
        when_empty='images come from image_topic; with cameras: one for each, separated by '
        'spaces, or one for all',
    ),
    _argument('loop', 'loop', 'source'),
    _argument('rate_hz', 'rate_hz', 'source'),
    _argument('width', 'width', 'source'),
    _argument('height', 'height', 'source'),
    _argument('frame_id', 'frame_id', 'source'),
    _argument('camera_info', 'camera_info_path', 'source'),
    _argument('model', 'model_path', 'detector'),
    _argument('backend', 'backend', 'detector'),
    _argument('device', 'device', 'detector'),
    _argument('detect_every_n', 'detect_every_n', 'detector'),
    _argument('tracker', 'tracker', 'tracker'),
    _argument(
        'image_transport', 'image_transport', 'perception', 'detector', 'tracker', 'visualizer'
    ),
    _argument('log_format', 'log_format', *_PARAMETERS, 'metrics', 'gateway'),
)


def overrides(given: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The parameters that the user gave as launch arguments.

    Args:
        given: texts of launch arguments by name. Empty ones, and those that are no parameters,
            are left out.

    Returns:
        Values by node and parameter.

    Raises:
        ParameterError: a text is no value of its parameter.
    """
    values: dict[str, dict[str, Any]] = {}
    for argument in PARAMETER_ARGUMENTS:
        if text := given.get(argument.name, ''):
            value = argument.parse(text)
            for node in argument.nodes:
                values.setdefault(node, {})[argument.spec.name] = value
    return values


def parameters_text(
    values: Mapping[str, Mapping[str, Any]], namespace: str = '', cameras: Sequence[str] = ('',)
) -> str:
    """A parameters file.

    Args:
        values: values by node and parameter.
        namespace: of the nodes, with or without slashes.
        cameras: namespaces of the cameras in it, where there are several.
    """
    prefix = f'/{namespace.strip("/")}/' if namespace.strip('/') else '/'
    sections = {}
    for node, parameters in values.items():
        of_cameras = cameras if node in EACH_CAMERA else ('',)
        for index, camera in enumerate(of_cameras):
            own = dict(parameters)
            if 'source' in own and len(of_cameras) > 1:
                own['source'] = _part(own['source'], index, len(of_cameras))
            sections[f'{prefix}{in_camera(camera, node)}'] = {'ros__parameters': own}
    # JSON, which is YAML with all texts quoted: rcl and PyYAML differ on what is a number.
    return json.dumps(sections, ensure_ascii=False, indent=2) + '\n'


def _part(text: str, index: int, count: int) -> str:
    """One of `count` parts of a text, which may be quoted as in a shell; else the whole."""
    try:
        parts = shlex.split(text)
    except ValueError:  # a quotation mark that is not closed
        return text
    if len(parts) == 1:
        return parts[0]
    return parts[index] if len(parts) == count else text


def write_parameters(
    values: Mapping[str, Mapping[str, Any]], namespace: str = '', cameras: Sequence[str] = ('',)
) -> Path:
    """A temporary parameters file, which is there as long as this process is.

    Args:
        values: values by node and parameter.
        namespace: of the nodes, with or without slashes.
        cameras: namespaces of the cameras in it, where there are several.
    """
    with tempfile.NamedTemporaryFile(
        'w', prefix='edge_perception_', suffix='.yaml', delete=False
    ) as file:
        file.write(parameters_text(values, namespace, cameras))
    path = Path(file.name)
    atexit.register(path.unlink, missing_ok=True)
    return path
