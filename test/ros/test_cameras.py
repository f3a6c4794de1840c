"""The names of cameras, and of the nodes of each."""

from __future__ import annotations

import json

import pytest

pytest.importorskip('rclpy', reason='rclpy is not there: run make setup')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from edge_perception.ros.cameras import camera_names, in_camera, in_cameras
from edge_perception.ros.launch_arguments import overrides, parameters_text
from edge_perception.ros.parameters import ParameterError
from edge_perception.ros.statuses import NodeStatuses


@pytest.mark.parametrize(
    'text, names',
    [
        ('', ('',)),
        ('front', ('front',)),
        ('front left', ('front', 'left')),
        (' front,left, rear/wide_2 ', ('front', 'left', 'rear/wide_2')),
    ],
)
def test_names(text: str, names: tuple[str, ...]) -> None:
    assert camera_names(text) == names


@pytest.mark.parametrize(
    'text, message',
    [
        ('/front', "'/front' is no relative namespace"),
        ('front left-wide', "'left-wide' is no"),
        ('2nd', "'2nd' is no"),
        ('front/', "'front/' is no"),
        ('front,left,front', 'names a camera twice'),
    ],
)
def test_what_is_no_name(text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        camera_names(text)


def test_topics() -> None:
    assert in_camera('', 'tracks') == 'tracks'
    assert in_camera('front/wide', 'tracks') == 'front/wide/tracks'


@pytest.mark.parametrize(
    'namespace, cameras, names',
    [
        ('/', ('',), {'detector'}),
        ('/front', ('',), {'tracker'}),
        ('/', ('front', 'left'), {'detector', 'front/tracker', 'left/tracker'}),
        ('/robot/', ('front',), {'metrics', 'front/tracker'}),
        ('/fro', ('',), set()),
    ],
)
def test_whose_statuses_belong_to_a_pipeline(
    namespace: str, cameras: tuple[str, ...], names: set[str]
) -> None:
    statuses = NodeStatuses(namespace, own_name='', cameras=cameras)
    everybody = (
        'detector',
        'front/tracker',
        'left/tracker',
        'robot/metrics',
        'robot/front/tracker',
    )
    status = [DiagnosticStatus(name=f'{name}: {name.rpartition("/")[2]}') for name in everybody]
    statuses.update(DiagnosticArray(status=status))
    assert set(statuses.of) == names


def test_launch_arguments_reach_the_nodes_of_each_camera() -> None:

    given = overrides({'cameras': 'front left', 'source': "'a b.mp4' 1", 'tracker': 'sort'})
    sections = json.loads(parameters_text(given, 'robot', ('front', 'left')))
    parameters = {name: section['ros__parameters'] for name, section in sections.items()}
    serving_all = ('perception', 'detector', 'metrics', 'gateway')
    for node in serving_all:
        assert parameters[f'/robot/{node}'] == {'cameras': 'front left'}
    assert parameters['/robot/front/source'] == {'source': 'a b.mp4'}
    assert parameters['/robot/left/source'] == {'source': '1'}
    assert parameters['/robot/front/tracker'] == parameters['/robot/left/tracker']
    assert len(parameters) == len(serving_all) + 4


@pytest.mark.parametrize(
    'argument, source',
    [
        ('0', '0'),
        ('my clip.mp4 of three', 'my clip.mp4 of three'),
        ("'my clip.mp4'", 'my clip.mp4'),
        ("it's one.mp4", "it's one.mp4"),
    ],
)
def test_a_source_for_all_cameras_is_that_of_each(argument: str, source: str) -> None:
    sections = json.loads(parameters_text(overrides({'source': argument}), '', ('front', 'left')))
    for camera in ('front', 'left'):
        assert sections[f'/{camera}/source'] == {'ros__parameters': {'source': source}}


def test_each_camera_has_each_name() -> None:
    nodes = ('detector', 'tracker')
    assert in_cameras(('',), nodes) == nodes
    expected = ('front/detector', 'front/tracker', 'left/detector', 'left/tracker')
    assert in_cameras(('front', 'left'), nodes) == expected
    assert in_cameras(('front', 'left'), []) == ()
