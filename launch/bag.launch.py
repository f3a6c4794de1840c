"""Plays the images of a bag with `ros2 bag play`, and detects and tracks on them.

ros2 launch edge_perception bag.launch.py bag:=out/demo/bag image_transport:=compressed

The node `source` reads bags, too, without rosbag2 and in the process of the other nodes:
`perception.launch.py source:=out/demo/bag`.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PythonExpression

from edge_perception.ros.paths import share_folder
from edge_perception.ros.transport import transport_environment


def start_player(context: LaunchContext) -> list[ExecuteProcess]:
    """`ros2 bag play`, once the values of the arguments are known."""
    arguments = context.launch_configurations
    compressed = arguments.get('image_transport') == 'compressed'
    images = arguments['image_topic'] + ('/compressed' if compressed else '')
    command = ['ros2', 'bag', 'play', arguments['bag'], '--rate', arguments['rate']]
    if float(arguments['clock_hz']):
        command += ['--clock', arguments['clock_hz']]
    if float(arguments['delay_s']):
        command += ['--delay', arguments['delay_s']]
    if arguments['loop'] == 'true':
        command.append('--loop')
    # Only the images by default: detections and tracks that the bag also holds would mix with
    # the new ones.
    command += ['--topics', *(arguments['topics'].split() or [images])]
    return [ExecuteProcess(cmd=command, additional_env=transport_environment(), output='screen')]


def generate_launch_description() -> LaunchDescription:
    """Called by `ros2 launch`."""
    clock_hz = LaunchConfiguration('clock_hz')
    return LaunchDescription(
        [
            DeclareLaunchArgument('bag', description='rosbag2 folder or file'),
            DeclareLaunchArgument(
                'image_topic',
                default_value='/image_raw',
                description='topic of the images in the bag, without /compressed',
            ),
            DeclareLaunchArgument(
                'topics',
                default_value='',
                description='topics to play, separated by spaces; empty: only the images',
            ),
            DeclareLaunchArgument('rate', default_value='1.0', description='speed of playing'),
            DeclareLaunchArgument(
                'loop',
                default_value='false',
                description='start the bag again at its end',
                choices=['true', 'false'],
            ),
            DeclareLaunchArgument(
                'clock_hz',
                default_value='100.0',
                description='how often to publish the time of the bag on /clock, which the nodes '
                'then use, so that their latencies are right; 0: not at all',
            ),
            DeclareLaunchArgument(
                'delay_s',
                default_value='5.0',
                description='how long to wait before playing, while the model is loaded',
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(
                    str(share_folder() / 'launch' / 'perception.launch.py')
                ),
                launch_arguments={
                    'use_sim_time': PythonExpression(
                        ["'true' if float('", clock_hz, "') else 'false'"]
                    ),
                }.items(),
            ),
            OpaqueFunction(function=start_player),
        ]
    )
