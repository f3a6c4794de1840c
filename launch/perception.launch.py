"""Detects and tracks: all nodes in one process, or with composed:=false one process a node.

ros2 launch edge_perception perception.launch.py source:=0
ros2 launch edge_perception perception.launch.py image_topic:=/camera/image_raw
ros2 launch edge_perception perception.launch.py namespace:=front source:=front.mp4 rviz:=true
ros2 launch edge_perception perception.launch.py cameras:="front left" source:="0 2"
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import Node

from edge_perception.nodes.perception import EACH_CAMERA, MEMBERS, PerceptionParameters
from edge_perception.ros.cameras import camera_names, in_camera
from edge_perception.ros.launch_arguments import (
    PARAMETER_ARGUMENTS,
    overrides,
    write_parameters,
)
from edge_perception.ros.parameters import ParameterError, comma_separated
from edge_perception.ros.paths import share_folder
from edge_perception.ros.transport import transport_environment

NODES = list(MEMBERS)
DEFAULT_MEMBERS = comma_separated(PerceptionParameters().members)


def chosen_nodes(arguments: Mapping[str, str]) -> list[str] | None:
    """The nodes to start, None when the arguments say nothing about them."""
    wanted = comma_separated(arguments['nodes'])
    if unknown := set(wanted) - set(NODES):
        raise ParameterError(
            f'nodes:={arguments["nodes"]}: {", ".join(unknown)} is not one of {", ".join(NODES)}'
        )
    added = ['source'] if arguments['source'] else []
    added += ['gateway'] if arguments['gateway'] == 'true' else []
    if not wanted and not added:
        return None
    return list(dict.fromkeys([*(wanted or DEFAULT_MEMBERS), *added]))


def start_nodes(context: LaunchContext) -> list[Node]:
    """The processes, once the values of the arguments are known."""
    arguments = context.launch_configurations
    namespace = arguments['namespace']
    params_file = Path(arguments['params_file'])
    if not params_file.is_file():
        raise ParameterError(f'params_file:={params_file}: there is no such file')
    nodes = chosen_nodes(arguments)
    cameras = camera_names(arguments['cameras'])
    image_topic = arguments['image_topic']
    if arguments['cameras'] and image_topic.startswith('/'):
        raise ParameterError(
            f'image_topic:={image_topic}: with cameras it is relative to each of them'
        )

    given = overrides(arguments)
    if arguments['composed'] == 'true':
        executables = ['perception']
        if nodes is not None:
            given.setdefault('perception', {})['members'] = ','.join(nodes)
    else:
        executables = nodes or DEFAULT_MEMBERS
    if arguments['use_sim_time']:
        for name in ('perception', *NODES):
            given.setdefault(name, {})['use_sim_time'] = arguments['use_sim_time'] == 'true'
    parameters = [str(params_file)]
    if given:
        parameters.append(str(write_parameters(given, namespace, cameras)))

    # Names are relative to the node: to the camera, or for who serves all cameras to their parent.
    remappings = [
        (in_camera(camera, f'image_raw{transport}'), in_camera(camera, image_topic + transport))
        for camera in dict.fromkeys(('', *cameras))
        for transport in ('', '/compressed')
    ]
    processes = [
        Node(
            package='edge_perception',
            executable=executable,
            namespace=_join(namespace, camera),
            parameters=parameters,
            remappings=remappings,
            ros_arguments=['--log-level', arguments['log_level']],
            respawn=arguments['respawn'] == 'true',
            respawn_delay=2.0,
            output='screen',
        )
        for executable in executables
        for camera in (cameras if executable in EACH_CAMERA else ('',))
    ]
    if arguments['rviz'] == 'true':
        # First, because launch leaves alone what it has started when a later package is missing.
        processes.insert(
            0,
            Node(
                package='rviz2',
                executable='rviz2',
                namespace=_join(namespace, cameras[0]),
                arguments=['-d', str(share_folder() / 'config' / 'perception.rviz')],
                remappings=remappings,
                additional_env=transport_environment(),
                output='screen',
            ),
        )
    return processes


def _join(namespace: str, camera: str) -> str:
    return in_camera(namespace.rstrip('/'), camera) if camera else namespace


def generate_launch_description() -> LaunchDescription:
    """Called by `ros2 launch`."""
    yes_or_no = ['true', 'false']
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(
                    argument.name,
                    default_value='',
                    description=argument.description,
                    choices=argument.choices,
                )
                for argument in PARAMETER_ARGUMENTS
            ),
            DeclareLaunchArgument(
                'nodes',
                default_value='',
                description=f'nodes to start, separated by commas, of {", ".join(NODES)}; empty: '
                'as `members` of perception in params_file, with composed:=false '
                f'{", ".join(DEFAULT_MEMBERS)}; the arguments source and gateway add theirs',
            ),
            DeclareLaunchArgument(
                'gateway',
                default_value='false',
                description='also serve health, metrics, detection and a live page over HTTP',
                choices=yes_or_no,
            ),
            DeclareLaunchArgument(
                'image_topic',
                default_value='image_raw',
                description='topic of the images, and of their compressed form <topic>/compressed',
            ),
            DeclareLaunchArgument(
                'namespace',
                default_value='',
                description='of all nodes and topics, such as the name of the camera',
            ),
            DeclareLaunchArgument(
                'composed',
                default_value='true',
                description='all nodes in one process, which costs least; or each in its own',
                choices=yes_or_no,
            ),
            DeclareLaunchArgument(
                'params_file',
                default_value=str(share_folder() / 'config' / 'perception.yaml'),
                description='parameters of all nodes',
            ),
            DeclareLaunchArgument(
                'use_sim_time',
                default_value='',
                description='time from /clock; empty: as in params_file',
                choices=['', *yes_or_no],
            ),
            DeclareLaunchArgument(
                'rviz',
                default_value='false',
                description='start rviz2 with config/perception.rviz',
                choices=yes_or_no,
            ),
            DeclareLaunchArgument(
                'log_level',
                default_value='info',
                description='the least severe messages that are logged',
                choices=['debug', 'info', 'warn', 'error', 'fatal'],
            ),
            DeclareLaunchArgument(
                'respawn',
                default_value='false',
                description='start a process again 2 s after it has ended',
                choices=yes_or_no,
            ),
            OpaqueFunction(function=start_nodes),
        ]
    )
