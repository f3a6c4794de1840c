"""What the middleware serialises, in a bag: every message type of this workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from vision_msgs.msg import (
    Detection2D,
    Detection2DArray,
    LabelInfo,
    ObjectHypothesisWithPose,
    VisionClass,
)

from edge_perception.media import open_source
from edge_perception.media.bag import BagWriter
from edge_perception.ros.images import frame_to_compressed, frame_to_image
from edge_perception.types import Frame


def _detections() -> Detection2DArray:
    result = ObjectHypothesisWithPose()
    result.hypothesis.class_id, result.hypothesis.score = 'person', 0.75
    detection = Detection2D(id='7', results=[result])
    detection.bbox.size_x = 12.5
    return Detection2DArray(detections=[detection])


def _diagnostics() -> DiagnosticArray:
    status = DiagnosticStatus(level=b'\1', name='n', values=[KeyValue(key='fps', value='10')])
    return DiagnosticArray(status=[status])


@pytest.mark.parametrize(
    ('msgtype', 'message', 'path', 'expected'),
    [
        ('vision_msgs/msg/Detection2DArray', _detections(), 'detections.0.bbox.size_x', 12.5),
        ('vision_msgs/msg/Detection2DArray', _detections(), 'detections.0.id', '7'),
        (
            'vision_msgs/msg/LabelInfo',
            LabelInfo(class_map=[VisionClass(class_id=3, class_name='cat')], threshold=0.5),
            'class_map.0.class_name',
            'cat',
        ),
        ('diagnostic_msgs/msg/DiagnosticArray', _diagnostics(), 'status.0.values.0.value', '10'),
    ],
)
def test_read_by_the_definition_in_the_bag(
    tmp_path: Path, msgtype: str, message: Any, path: str, expected: Any
) -> None:
    """A reader that knows no package, as Foxglove, gets every field from what the bag says."""
    with BagWriter(tmp_path / 'bag') as writer:
        writer.write('/topic', msgtype, 1, serialize_message(message))
    with Reader(tmp_path / 'bag') as reader:
        ((connection, _, data),) = reader.messages()
        store = get_typestore(Stores.EMPTY)
        store.register(get_types_from_msg(connection.msgdef.data, msgtype))
        value: Any = store.deserialize_cdr(data, msgtype)
    for part in path.split('.'):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    assert value == expected


@pytest.mark.parametrize(
    ('msgtype', 'convert', 'tolerance'),
    [
        ('sensor_msgs/msg/Image', frame_to_image, 0),
        ('sensor_msgs/msg/CompressedImage', frame_to_compressed, 3),
    ],
)
def test_images_come_back_as_a_source(
    tmp_path: Path, msgtype: str, convert: Any, tolerance: int
) -> None:
    """What was published and recorded is played again: same pixels, stamps and frame ids."""
    frames = [
        Frame(np.full((32, 48, 3), 50 + index, np.uint8), 10**18 + index * 10**8, 'front')
        for index in range(4)
    ]
    with BagWriter(tmp_path / 'bag') as writer:
        for frame in frames:
            cdr = serialize_message(convert(frame))
            writer.write('/image', msgtype, frame.stamp_ns + 5, cdr)
    with open_source(tmp_path / 'bag') as source:
        for frame, read in zip(frames, source, strict=True):
            assert (read.stamp_ns, read.frame_id) == (frame.stamp_ns, frame.frame_id)
            assert np.abs(read.image.astype(int) - frame.image).max() <= tolerance
