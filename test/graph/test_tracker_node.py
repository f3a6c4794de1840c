"""The tracker node on the real middleware."""

import time

import numpy as np
import pytest
from rclpy.parameter import Parameter
from std_msgs.msg import Header
from vision_msgs.msg import Detection2D, Detection2DArray

from edge_perception.nodes.tracker import TrackerNode
from edge_perception.ros.links import Stamped
from edge_perception.ros.messages import stamp_ns, to_message
from edge_perception.ros.qos import RESULTS_QOS
from edge_perception.tracking import AdaptiveParameters
from edge_perception.types import Detections

PERIOD_NS = 100_000_000


class DetectionPublisher:
    def __init__(self, graph):
        self._publisher = graph.node.create_publisher(Detection2DArray, 'detections', RESULTS_QOS)
        graph.until(lambda: self._publisher.get_subscription_count(), 'the tracker')

    def send(self, stamp, *boxes, name='person'):
        detections = Detections(
            xyxy=np.array(boxes, np.float32).reshape(-1, 4),
            score=np.full(len(boxes), 0.9, np.float32),
            class_id=np.zeros(len(boxes), np.int32),
        )
        self.send_message(to_message(Stamped(detections, stamp, 'camera', {0: name})))

    def send_message(self, message):
        self._publisher.publish(message)


@pytest.fixture(params=['hybrid', 'iou', 'sort', 'bytetrack', 'ocsort'])
def every_tracker(request):
    return request.param


def tracks_of(graph, messages, stamp):
    def found():
        return [message for message in messages if stamp_ns(message.header) == stamp]

    graph.until(found, 'tracks')
    return found()[0]


def test_every_image_is_answered_also_without_detections(graph, images):
    graph.add(TrackerNode)
    messages = graph.collect(Detection2DArray, 'tracks')
    images.wait_for_subscribers()
    for _ in range(5):
        assert tracks_of(graph, messages, images.send()).detections == []
    assert [stamp_ns(message.header) for message in messages] == images.stamps_ns


def test_object_keeps_its_id_over_late_detections(graph, images, every_tracker):
    node = graph.add(TrackerNode, tracker=every_tracker, use_images=False)
    messages = graph.collect(Detection2DArray, 'tracks')
    images.wait_for_subscribers()
    detections = DetectionPublisher(graph)
    start, box = time.time_ns(), np.array([40, 40, 80, 140], np.float32)
    ids = []
    for i in range(8):
        stamp = images.send(stamp_ns=start + i * PERIOD_NS)
        answer = tracks_of(graph, messages, stamp)
        ids += [detection.id for detection in answer.detections]
        # The detection of this image comes when its tracks are out already.
        detections.send(stamp, box + i * np.float32([3, 0, 3, 0]))
        graph.until(lambda i=i: node._corrections.counts.processed == i + 1, f'correction {i + 1}')
    assert len(ids) >= 4
    assert set(ids) == {'1'}
    assert answer.detections[0].results[0].hypothesis.class_id == 'person'
    assert answer.detections[0].bbox.center.position.x == pytest.approx(60 + 7 * 3, abs=6)


def test_malformed_detections_are_counted_and_the_node_lives_on(graph, images):
    graph.add(TrackerNode)
    messages = graph.collect(Detection2DArray, 'tracks')
    images.wait_for_subscribers()
    detections = DetectionPublisher(graph)
    stamp = images.send()
    bad = to_message(Stamped(Detections.empty(), stamp, '', {}))
    bad.detections.append(Detection2D())
    detections.send_message(bad)
    graph.until(
        lambda: graph.diagnostics.get('tracker', {}).get('failed') == '1', 'a failed count'
    )
    tracks_of(graph, messages, images.send())


def test_stamps_that_jump_back_start_tracks_anew_with_new_ids(graph, images):
    node = graph.add(TrackerNode, use_images=False, tracker='iou')
    messages = graph.collect(Detection2DArray, 'tracks')
    images.wait_for_subscribers()
    detections = DetectionPublisher(graph)
    now, seen = time.time_ns(), []
    for start in (now, now - 3600 * 10**9):
        for i in range(4):
            stamp = images.send(stamp_ns=start + i * PERIOD_NS)
            answer = tracks_of(graph, messages, stamp)
            detections.send(stamp, (10, 10, 50, 90))
            done = node._corrections.counts.received + 1
            graph.until(
                lambda done=done: (
                    node._corrections.counts.processed >= done
                    or node._corrections.counts.processed == node._corrections.counts.received
                ),
                'correction',
            )
        seen.append({detection.id for detection in answer.detections})
    assert all(len(ids) == 1 for ids in seen)
    assert seen[0] != seen[1]


def test_diagnostics_count_images_and_tracks(graph, images):
    graph.add(TrackerNode)
    messages = graph.collect(Detection2DArray, 'tracks')
    images.wait_for_subscribers()
    for _ in range(3):
        tracks_of(graph, messages, images.send())
    graph.until(lambda: graph.diagnostics.get('tracker', {}).get('tracked') == '3', 'diagnostics')
    values = graph.diagnostics['tracker']
    assert values['tracker'] == 'hybrid'
    assert values['received'] == '3'
    assert values['dropped'] == '0'
    assert float(values['track_ms.p95']) > 0
    assert float(values['end_to_end_ms.p50']) > 0


def test_adaptive_schedule_asks_by_stamp_and_says_why(graph, images):
    node = graph.add(TrackerNode, schedule='adaptive', max_detect_interval_s=0.5)
    requests = graph.collect(Header, 'detect_request')
    graph.collect(Detection2DArray, 'tracks')
    images.wait_for_subscribers()
    detections = DetectionPublisher(graph)
    graph.until(lambda: node._request_publisher.get_subscription_count(), 'the request reader')
    start = time.time_ns()
    for i in range(12):
        stamp = images.send(stamp_ns=start + i * PERIOD_NS)
        graph.until(lambda i=i: node._frames.counts.processed == i + 1, f'image {i}')
        if node._schedule.chosen_n and stamp in node._asked_s:
            detections.send(stamp)
            graph.until(lambda stamp=stamp: stamp not in node._asked_s, 'the answer')
    # A still, empty scene: the first image, and then as rarely as is allowed.
    graph.until(lambda: len(requests) == 3, 'requests')
    assert [stamp_ns(header) for header in requests] == images.stamps_ns[0:12:5]
    graph.until(
        lambda: graph.diagnostics.get('tracker', {}).get('chosen_n') == '5', 'the chosen N'
    )
    assert graph.diagnostics['tracker']['chosen_because'] == 'longest interval'


def test_how_much_doubt_asks_can_be_changed_live(graph):
    node = graph.add(TrackerNode, schedule='adaptive')
    assert node._schedule.parameters == AdaptiveParameters()
    assert node.set_parameters([Parameter('max_uncertainty', value=0.3)])[0].successful
    assert node._schedule.parameters == AdaptiveParameters(max_uncertainty=0.3)


def test_limits_of_the_schedule_that_contradict_are_refused(graph):
    node = graph.add(TrackerNode)
    result = node.set_parameters([Parameter('min_detect_interval_s', value=5.0)])[0]
    assert not result.successful
    assert 'min_interval_s' in result.reason


@pytest.mark.parametrize(
    ('settings', 'reason'),
    [
        ('coast_s', "'coast_s' is not NAME=NUMBER"),
        ('coast_s=soon', "'coast_s=soon' is not NAME=NUMBER"),
        ('colour=1', 'has no colour'),
        ('lost_s=-1', 'lost_s must be'),
    ],
)
def test_settings_of_the_tracker_that_do_not_fit_are_refused(graph, settings, reason):
    node = graph.add(TrackerNode)
    result = node.set_parameters([Parameter('tracker_settings', value=settings)])[0]
    assert not result.successful
    assert reason in result.reason


def test_settings_of_the_tracker_change_live(graph):
    node = graph.add(TrackerNode, tracker_settings='lost_s=1.5')
    assert node._tracker.parameters.lost_s == 1.5
    change = Parameter('tracker_settings', value='lost_s=3.0, class_aware=False')
    assert node.set_parameters([change])[0].successful
    assert node._tracker.parameters.lost_s == 3.0
    assert not node._tracker.parameters.class_aware
