"""Launch arguments that become parameters of nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='rclpy is not there: run make setup')

import rclpy
from parameter_tables import NODE_PARAMETERS
from rclpy.context import Context
from rclpy.node import Node

from edge_perception.ros.launch_arguments import (
    PARAMETER_ARGUMENTS,
    overrides,
    write_parameters,
)
from edge_perception.ros.parameters import ParameterError, declare

CONFIG = Path(__file__).resolve().parents[2] / 'config' / 'perception.yaml'


def parameters_in_force(node: str, namespace: str, *files: Path) -> object:
    """The parameters of a node that is started with these files, in this namespace."""
    context = Context()
    args = ['--ros-args', '-r', f'__ns:=/{namespace}']
    for file in files:
        args += ['--params-file', str(file)]
    rclpy.init(args=args, context=context)
    started = Node(node, context=context)
    try:
        return declare(started, NODE_PARAMETERS[node])
    finally:
        started.destroy_node()
        context.shutdown()


def test_what_is_not_given_is_not_overridden() -> None:
    assert overrides({argument.name: '' for argument in PARAMETER_ARGUMENTS}) == {}
    assert overrides({'namespace': 'front', 'composed': 'true'}) == {}


@pytest.mark.parametrize(
    'given, node, parameter, value',
    [
        ({'source': '0'}, 'source', 'source', '0'),  # stays a text
        ({'source': 'a b: c.mp4'}, 'source', 'source', 'a b: c.mp4'),
        ({'loop': 'true'}, 'source', 'loop', True),
        ({'rate_hz': '30'}, 'source', 'rate_hz', 30.0),
        ({'detect_every_n': '7'}, 'detector', 'detect_every_n', 7),
        ({'model': '1e3'}, 'detector', 'model_path', '1e3'),
        ({'image_transport': 'compressed'}, 'tracker', 'image_transport', 'compressed'),
        ({'tracker': 'sort'}, 'tracker', 'tracker', 'sort'),
    ],
)
@pytest.mark.parametrize('namespace', ['', 'front', '/site/front/'])
def test_an_argument_wins_over_the_parameters_file(
    given: dict[str, str], node: str, parameter: str, value: object, namespace: str
) -> None:
    file = write_parameters(overrides(given), namespace)
    parameters = parameters_in_force(node, namespace.strip('/'), CONFIG, file)
    assert getattr(parameters, parameter) == value


def test_the_rest_of_the_parameters_file_stays_in_force(tmp_path: Path) -> None:
    params_file = tmp_path / 'my.yaml'
    params_file.write_text(
        '/**:\n  ros__parameters:\n    backend: onnx\n'
        '/**/detector:\n  ros__parameters:\n    score_threshold: 0.4\n    detect_every_n: 9\n'
    )
    file = write_parameters(overrides({'detect_every_n': '2'}), 'front')
    parameters = parameters_in_force('detector', 'front', params_file, file)
    assert (parameters.backend, parameters.score_threshold) == ('onnx', 0.4)
    assert parameters.detect_every_n == 2


@pytest.mark.parametrize(
    'given, message',
    [
        ({'detect_every_n': 'often'}, r'^detect_every_n:=often: expected int$'),
        ({'detect_every_n': '0'}, r'^detect_every_n: 0 is not in 1 to 1000$'),
        ({'tracker': 'magic'}, r"^tracker: 'magic' is not one of hybrid, "),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(given: dict[str, str], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        overrides(given)


def test_an_argument_of_several_nodes_has_the_same_meaning_for_each() -> None:
    for argument in PARAMETER_ARGUMENTS:
        for node in argument.nodes:
            field = NODE_PARAMETERS[node].__dataclass_fields__[argument.spec.name]
            assert field.metadata['description'] == argument.spec.description
            assert field.metadata['choices'] == argument.spec.choices


def test_the_parameters_file_is_gone_after_the_launch() -> None:
    code = (
        'from edge_perception.ros.launch_arguments import write_parameters\n'
        "path = write_parameters({'detector': {'backend': 'onnx'}})\n"
        'assert path.is_file()\nprint(path)\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip().endswith('.yaml')
    assert not Path(result.stdout.strip()).exists()
