"""Tracked detections from camera images on a small computer, for ROS 2."""

__version__ = '0.1.0'
