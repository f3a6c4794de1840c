"""Cameras, video files and bags, read and written. No ROS graph."""

from edge_perception.media.camera_info import CameraInfo, load_camera_info
from edge_perception.media.errors import MediaError, MediaTimeoutError, hide_password
from edge_perception.media.opening import open_source
from edge_perception.media.source import Source

__all__ = [
    'CameraInfo',
    'MediaError',
    'MediaTimeoutError',
    'Source',
    'hide_password',
    'load_camera_info',
    'open_source',
]
