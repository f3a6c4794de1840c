"""vision_msgs <-> arrays."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not there: run make setup')

from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, ObjectHypothesisWithPose

from edge_perception.ros.links import Stamped
from edge_perception.ros.messages import (
    ClassNames,
    MessageError,
    label_info,
    make_header,
    message_to_detections,
    message_to_tracks,
    stamp_ns,
    to_message,
)
from edge_perception.types import Detections, Tracks

STAMP_NS = 1_700_000_000_123_456_789
NAMES = {0: 'person', 2: 'car'}


def some_tracks():
    return Tracks(
        xyxy=np.array([[10, 20, 30, 60], [-5, 0, 7.5, 9]], np.float32),
        score=np.array([0.5, 0.25], np.float32),
        class_id=np.array([0, 2], np.int32),
        track_id=np.array([7, 2**40], np.int64),
        age_s=np.ones(2, np.float32),
        time_since_detection_s=np.zeros(2, np.float32),
        source=np.zeros(2, np.uint8),
    )


def over_the_wire(message):
    return deserialize_message(serialize_message(message), type(message))


def test_tracks_survive_the_wire_with_header_ids_and_names():
    message = over_the_wire(to_message(Stamped(some_tracks(), STAMP_NS, 'camera', NAMES)))
    assert [detection.id for detection in message.detections] == ['7', str(2**40)]
    assert message.detections[0].results[0].hypothesis.class_id == 'person'
    assert message.detections[1].header == message.header
    again = message_to_tracks(message, ClassNames())
    assert (again.stamp_ns, again.frame_id) == (STAMP_NS, 'camera')
    np.testing.assert_allclose(again.value.xyxy, some_tracks().xyxy, rtol=1e-6)
    np.testing.assert_array_equal(again.value.track_id, [7, 2**40])
    np.testing.assert_array_equal(again.value.score, [0.5, 0.25])
    assert [again.names[i] for i in again.value.class_id] == ['person', 'car']


def test_detections_have_an_empty_id():
    tracks = some_tracks()
    detections = Detections(xyxy=tracks.xyxy, score=tracks.score, class_id=tracks.class_id)
    message = over_the_wire(to_message(Stamped(detections, STAMP_NS, '', NAMES)))
    assert [detection.id for detection in message.detections] == ['', '']
    with pytest.raises(MessageError, match='no number'):
        message_to_tracks(message, ClassNames())
    assert len(message_to_detections(message, ClassNames()).value) == 2


def test_no_objects_is_a_message_too():
    message = over_the_wire(to_message(Stamped(Detections.empty(), STAMP_NS, '', NAMES)))
    assert stamp_ns(message.header) == STAMP_NS
    assert len(message_to_detections(message, ClassNames()).value) == 0


def test_class_without_a_name_is_its_number():
    message = to_message(Stamped(some_tracks(), STAMP_NS, '', {}))
    assert message.detections[1].results[0].hypothesis.class_id == '2'


def test_class_numbers_stay_with_their_names_over_messages():
    names = ClassNames()
    assert [names.id_of(name) for name in ('car', 'person', 'car', 'bus')] == [0, 1, 0, 2]
    assert names.names == {0: 'car', 1: 'person', 2: 'bus'}


def test_best_hypothesis_counts():
    message = to_message(Stamped(some_tracks(), STAMP_NS, '', NAMES))
    better = ObjectHypothesisWithPose()
    better.hypothesis.class_id, better.hypothesis.score = 'dog', 0.9
    message.detections[0].results.append(better)
    again = message_to_detections(message, ClassNames())
    assert again.names[again.value.class_id[0]] == 'dog'
    assert again.value.score[0] == pytest.approx(0.9)


def test_box_that_is_not_finite_is_refused():
    message = to_message(Stamped(some_tracks(), STAMP_NS, '', NAMES))
    message.detections[1].bbox.size_x = float('nan')
    with pytest.raises(MessageError, match='not finite'):
        message_to_detections(message, ClassNames())


def test_detection_without_a_hypothesis_is_refused():
    message = to_message(Stamped(some_tracks(), STAMP_NS, '', NAMES))
    message.detections[0].results = []
    with pytest.raises(MessageError, match='no result'):
        message_to_detections(message, ClassNames())


def test_label_info_lists_classes():
    info = over_the_wire(label_info(NAMES, 0.5, Header()))
    assert [(item.class_id, item.class_name) for item in info.class_map] == list(NAMES.items())
    assert info.threshold == 0.5


@pytest.mark.parametrize('value_ns', [0, 1, 999_999_999, 10**9, STAMP_NS])
def test_stamps_are_exact(value_ns):
    assert stamp_ns(make_header(value_ns, '')) == value_ns


def test_message_type_is_the_one_of_vision_msgs():
    assert Detection2DArray.__module__.startswith('vision_msgs')
