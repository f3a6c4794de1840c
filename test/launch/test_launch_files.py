"""The launch files, started as `ros2 launch` starts them: real nodes on the demo clip."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    'launch_pytest', reason='launch_pytest is not installed: it comes with a ROS distribution'
)

import launch_pytest
import rclpy
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    ExecuteProcess,
    IncludeLaunchDescription,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.utilities import perform_substitutions
from launch_pytest.actions import ReadyToTest
from launch_ros.actions import Node as LaunchedNode
from rclpy.context import Context
from rclpy.node import Node
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray, LabelInfo

from edge_perception.ros.images import image_to_frame
from edge_perception.ros.messages import stamp_ns
from edge_perception.ros.qos import LATCHED_QOS, RESULTS_QOS, image_qos
from edge_perception.ros.release import make_executor
from edge_perception.ros.transport import apply_transport_defaults

LAUNCH = Path(__file__).resolve().parents[2] / 'launch'
DEADLINE_S = 60.0
FRAME_NS = 100_000_000


class Observer:
    """A node that looks at the graph from outside."""

    def __init__(self, domain_id: int) -> None:
        apply_transport_defaults()
        self.context = Context()
        rclpy.init(args=[], context=self.context, domain_id=domain_id)
        self.node = Node('observer', context=self.context)
        self.executor = make_executor(self.context)
        self.executor.add_node(self.node)

    def collect(self, kind: type, topic: str, qos: Any = RESULTS_QOS) -> list[Any]:
        """The messages on `topic`, filled while `until` waits."""
        messages: list[Any] = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Take in messages until `condition` holds."""
        end_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end_s, f'waited {DEADLINE_S:.0f} s for {what}'
            self.executor.spin_once(timeout_sec=0.05)

    def node_names(self) -> set[str]:
        """Full names of the other nodes, without hidden ones such as the daemon of `ros2`."""
        return {
            f'{namespace.rstrip("/")}/{name}'
            for name, namespace in self.node.get_node_names_and_namespaces()
            if name != 'observer' and not name.startswith('_')
        }

    def close(self) -> None:
        """Leave the graph."""
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def domain_id(new_domain_id: Callable[[], int]) -> int:
    """A ROS domain that no other test uses."""
    return new_domain_id()


@pytest.fixture
def observer(domain_id: int) -> Iterator[Observer]:
    """An observer in the domain of the launched nodes."""
    observer = Observer(domain_id)
    try:
        yield observer
    finally:
        observer.close()


def launched(name: str, domain_id: int, **arguments: str) -> tuple[LaunchDescription, list[Any]]:
    """A launch file with arguments, and the list that its processes enter when they exit."""
    exits: list[ProcessExited] = []
    return (
        LaunchDescription(
            [
                SetEnvironmentVariable('ROS_DOMAIN_ID', str(domain_id)),
                RegisterEventHandler(
                    OnProcessExit(on_exit=lambda event, context: exits.append(event))
                ),
                IncludeLaunchDescription(
                    PythonLaunchDescriptionSource(str(LAUNCH / name)),
                    launch_arguments=arguments.items(),
                ),
                ReadyToTest(),
            ]
        ),
        exits,
    )


def exit_codes(exits: list[ProcessExited]) -> dict[str, int]:
    """Exit codes by process name without its number."""
    return {event.process_name.rpartition('-')[0]: event.returncode for event in exits}


@launch_pytest.fixture
def one_process(domain_id: int, demo_clip: Path) -> tuple[LaunchDescription, list[Any]]:
    """perception.launch.py as it comes, on the demo clip."""
    return launched('perception.launch.py', domain_id, source=str(demo_clip), detect_every_n='3')


@launch_pytest.fixture
def separate_processes(domain_id: int, demo_clip: Path) -> tuple[LaunchDescription, list[Any]]:
    """The same with a process for each node, a namespace and another image topic."""
    return launched(
        'perception.launch.py',
        domain_id,
        source=str(demo_clip),
        detect_every_n='3',
        composed='false',
        namespace='front',
        image_topic='/camera/image',
    )


def check_perception(observer: Observer, prefix: str, image_topic: str) -> None:
    """Whether what a user of the launch file expects is on the topics under `prefix`."""
    detections = observer.collect(Detection2DArray, f'{prefix}/detections')
    tracks = observer.collect(Detection2DArray, f'{prefix}/tracks')
    observer.until(lambda: len(tracks) >= 60 and len(detections) >= 15, 'tracks and detections')

    # One message for each image, in order, with the stamps of a 10 Hz clip.
    stamps = [stamp_ns(message.header) for message in tracks]
    steps = [after - before for before, after in itertools.pairwise(stamps)]
    assert all(abs(step - FRAME_NS) < 1_000_000 for step in steps)

    # The detector speaks on every third of them that it takes in; on a loaded machine it leaves
    # some out, the tracker none.
    stamps = [stamp_ns(message.header) for message in detections]
    steps = [after - before for before, after in itertools.pairwise(stamps)]
    assert min(round(step / FRAME_NS) for step in steps) == 3

    # People keep their ids.
    ids = [[item.id for item in message.detections] for message in tracks]
    assert all(len(set(frame)) == len(frame) for frame in ids)
    assert all(int(track_id) >= 1 for frame in ids for track_id in frame)
    counts = [sum(track_id in frame for frame in ids) for track_id in {*itertools.chain(*ids)}]
    assert max(counts) >= 50
    classes = {item.results[0].hypothesis.class_id for m in tracks for item in m.detections}
    assert classes == {'person'}
    assert all(item.id == '' for message in detections for item in message.detections)

    # Who comes late learns the class names, and gets pictures when asking for them.
    labels = observer.collect(LabelInfo, f'{prefix}/label_info', LATCHED_QOS)
    annotated = observer.collect(Image, f'{prefix}/image_annotated', image_qos(5))
    images = observer.collect(Image, image_topic, image_qos(5))
    observer.until(lambda: labels and annotated and images, 'labels and images')
    assert 'person' in {item.class_name for item in labels[0].class_map}
    assert image_to_frame(annotated[0]).image.shape == (576, 768, 3)
    assert image_to_frame(images[0]).image.shape == (576, 768, 3)


@pytest.mark.launch(fixture=one_process)
def test_perception_in_one_process(one_process: Any, observer: Observer) -> Iterator[None]:
    check_perception(observer, '', '/image_raw')
    names = {'source', 'detector', 'tracker', 'visualizer', 'metrics', 'perception'}
    observer.until(lambda: observer.node_names() == {f'/{name}' for name in names}, 'all nodes')
    yield
    assert exit_codes(one_process[1]) == {'perception': 0}


@pytest.mark.launch(fixture=separate_processes)
def test_perception_in_separate_processes(
    separate_processes: Any, observer: Observer
) -> Iterator[None]:
    check_perception(observer, '/front', '/camera/image')
    names = {'source', 'detector', 'tracker', 'visualizer', 'metrics'}
    expected = {f'/front/{name}' for name in names}
    observer.until(lambda: observer.node_names() == expected, 'all nodes')
    yield
    assert exit_codes(separate_processes[1]) == dict.fromkeys(names, 0)


@launch_pytest.fixture
def two_cameras(domain_id: int, demo_clip: Path) -> tuple[LaunchDescription, list[Any]]:
    """Two cameras with a clip each, in a namespace, with another image topic."""
    return launched(
        'perception.launch.py',
        domain_id,
        cameras='front left',
        source=f"'{demo_clip}' '{demo_clip}'",
        rate_hz='5',
        detect_every_n='2',
        namespace='robot',
        image_topic='image_rect',
    )


@pytest.mark.launch(fixture=two_cameras)
def test_two_cameras(two_cameras: Any, observer: Observer) -> Iterator[None]:
    prefixes = ('/robot/front', '/robot/left')
    tracks = [observer.collect(Detection2DArray, f'{prefix}/tracks') for prefix in prefixes]
    detections = [
        observer.collect(Detection2DArray, f'{prefix}/detections') for prefix in prefixes
    ]
    images = [observer.collect(Image, f'{prefix}/image_rect', image_qos(5)) for prefix in prefixes]
    observer.until(lambda: all(len(each) >= 10 for each in tracks), 'tracks')
    observer.until(lambda: all((*detections, *images)), 'detections and images')
    assert all(message.detections for each in tracks for message in each[-3:])
    expected = {f'/robot/{name}' for name in ('detector', 'metrics', 'perception')}
    expected |= {
        f'{prefix}/{name}' for prefix in prefixes for name in ('source', 'tracker', 'visualizer')
    }
    observer.until(lambda: observer.node_names() == expected, 'all nodes')
    yield
    assert exit_codes(two_cameras[1]) == {'perception': 0}


@launch_pytest.fixture
def camera(domain_id: int, demo_clip: Path) -> tuple[LaunchDescription, list[Any]]:
    """camera.launch.py, with a file for a camera."""
    return launched(
        'camera.launch.py',
        domain_id,
        source=str(demo_clip),
        rate_hz='20',
        frame_id='front_optical',
    )


@pytest.mark.launch(fixture=camera)
def test_camera_alone(camera: Any, observer: Observer) -> Iterator[None]:
    images = observer.collect(Image, '/image_raw', image_qos(5))
    observer.until(lambda: len(images) >= 10, 'images')
    stamps = [stamp_ns(message.header) for message in images]
    steps = [after - before for before, after in itertools.pairwise(stamps)]
    assert all(abs(step - 50_000_000) < 1_000_000 for step in steps)
    assert images[0].header.frame_id == 'front_optical'
    assert observer.node_names() == {'/source'}
    yield
    assert exit_codes(camera[1]) == {'source': 0}


@launch_pytest.fixture
def no_model(domain_id: int) -> tuple[LaunchDescription, list[Any]]:
    """A model that is not there."""
    return launched('perception.launch.py', domain_id, model='missing.onnx')


@pytest.mark.launch(fixture=no_model)
def test_a_process_that_cannot_work_ends_with_an_error(
    no_model: Any, observer: Observer
) -> Iterator[None]:
    observer.until(lambda: no_model[1], 'the end of the process')
    yield
    assert exit_codes(no_model[1]) == {'perception': 1}


def started(name: str, **arguments: str) -> list[ExecuteProcess]:
    """The processes that a launch file would start."""
    context = LaunchContext()
    context.launch_configurations.update(arguments)

    def visit(entity: Any) -> Iterator[ExecuteProcess]:
        if isinstance(entity, ExecuteProcess):
            yield entity
        else:
            for child in entity.visit(context) or ():
                yield from visit(child)

    source = PythonLaunchDescriptionSource(str(LAUNCH / name))
    return list(visit(IncludeLaunchDescription(source, launch_arguments=arguments.items())))


def executables(processes: list[ExecuteProcess]) -> list[str]:
    """Names of the executables of the nodes among the processes."""
    return [item.node_executable for item in processes if isinstance(item, LaunchedNode)]


EACH_TWICE = ['tracker', 'tracker', 'visualizer', 'visualizer', 'source', 'source']
ALL_SEPARATE = ['detector', 'tracker', 'visualizer', 'metrics']


@pytest.mark.parametrize(
    'arguments, expected',
    [
        ({}, ['perception']),
        ({'source': '0'}, ['perception']),
        ({'composed': 'false'}, ALL_SEPARATE),
        ({'composed': 'false', 'source': '0'}, [*ALL_SEPARATE, 'source']),
        ({'composed': 'false', 'nodes': 'detector, tracker'}, ['detector', 'tracker']),
        ({'nodes': 'detector,tracker'}, ['perception']),
        ({'composed': 'false', 'gateway': 'true'}, [*ALL_SEPARATE, 'gateway']),
        ({'cameras': 'front left'}, ['perception']),
        (
            {'cameras': 'front left', 'composed': 'false', 'source': '0 2'},
            ['detector', *EACH_TWICE[:4], 'metrics', *EACH_TWICE[4:]],
        ),
        ({'rviz': 'true'}, ['rviz2', 'perception']),  # nothing is left behind without rviz2
    ],
)
def test_what_perception_starts(arguments: dict[str, str], expected: list[str]) -> None:
    assert executables(started('perception.launch.py', **arguments)) == expected


@pytest.mark.parametrize(
    'arguments, expected', [({}, ['source']), ({'perception': 'true'}, ['perception'])]
)
def test_what_camera_starts(arguments: dict[str, str], expected: list[str]) -> None:
    assert executables(started('camera.launch.py', **arguments)) == expected


@pytest.mark.parametrize(
    'arguments, command',
    [
        (
            {'bag': 'b'},
            'ros2 bag play b --rate 1.0 --clock 100.0 --delay 5.0 --topics /image_raw',
        ),
        (
            {'bag': 'b', 'loop': 'true', 'rate': '0.5', 'clock_hz': '0', 'delay_s': '0'},
            'ros2 bag play b --rate 0.5 --loop --topics /image_raw',
        ),
        (
            {'bag': 'b', 'image_topic': '/cam/image', 'image_transport': 'compressed'},
            'ros2 bag play b --rate 1.0 --clock 100.0 --delay 5.0 --topics /cam/image/compressed',
        ),
        (
            {'bag': 'b', 'topics': '/image_raw /tf'},
            'ros2 bag play b --rate 1.0 --clock 100.0 --delay 5.0 --topics /image_raw /tf',
        ),
    ],
)
def test_what_bag_starts(arguments: dict[str, str], command: str) -> None:
    *nodes, player = started('bag.launch.py', **arguments)
    assert executables(nodes) == ['perception']
    assert ' '.join(perform_substitutions(LaunchContext(), part) for part in player.cmd) == command


@pytest.mark.parametrize(
    'name, arguments, message',
    [
        ('perception.launch.py', {'nodes': 'tracker,radar'}, 'radar is not one of '),
        ('perception.launch.py', {'params_file': 'missing.yaml'}, 'there is no such file'),
        ('perception.launch.py', {'cameras': 'a /b'}, "'/b' is no relative namespace"),
        (
            'perception.launch.py',
            {'cameras': 'a b', 'image_topic': '/image'},
            'with cameras it is relative',
        ),
        ('perception.launch.py', {'detect_every_n': 'often'}, 'expected int'),
        ('perception.launch.py', {'tracker': 'magic'}, 'magic'),
        ('bag.launch.py', {}, "argument 'bag'"),
    ],
)
def test_a_wrong_argument_is_named(name: str, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        started(name, **arguments)


@pytest.mark.parametrize('name', [path.name for path in sorted(LAUNCH.glob('*.launch.py'))])
def test_every_argument_is_described(name: str) -> None:
    source = PythonLaunchDescriptionSource(str(LAUNCH / name))
    description = source.get_launch_description(LaunchContext())
    arguments = description.get_launch_arguments()
    assert arguments
    for argument in arguments:
        assert argument.description != 'no description given', argument.name
