"""Publishes a camera, a video or a bag as images; with perception:=true also what is seen there.

ros2 launch edge_perception camera.launch.py source:=/dev/video0 width:=1280 height:=720
ros2 launch edge_perception camera.launch.py namespace:=front perception:=true
"""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.conditions import IfCondition, UnlessCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from edge_perception.ros.launch_arguments import PARAMETER_ARGUMENTS
from edge_perception.ros.paths import share_folder


def generate_launch_description() -> LaunchDescription:
    """Called by `ros2 launch`."""
    perception = LaunchConfiguration('perception')
    source = next(item for item in PARAMETER_ARGUMENTS if item.name == 'source')
    launch_file = PythonLaunchDescriptionSource(
        str(share_folder() / 'launch' / 'perception.launch.py')
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                'source', default_value='0', description=source.spec.description
            ),
            DeclareLaunchArgument(
                'perception',
                default_value='false',
                description='also detect and track, in the same process',
                choices=['true', 'false'],
            ),
            IncludeLaunchDescription(launch_file, condition=IfCondition(perception)),
            IncludeLaunchDescription(
                launch_file,
                launch_arguments={'nodes': 'source', 'composed': 'false'}.items(),
                condition=UnlessCondition(perception),
            ),
        ]
    )
