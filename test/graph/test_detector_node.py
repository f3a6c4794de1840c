"""The detector node on the real middleware, with the default model."""

import time

import pytest
from lifecycle_msgs.msg import State
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, LabelInfo

from edge_perception.nodes.detector import DetectorNode
from edge_perception.ros.lifecycle import StartError
from edge_perception.ros.messages import make_header, stamp_ns
from edge_perception.ros.qos import LATCHED_QOS, RESULTS_QOS


def answers(graph, images, messages, image=None):
    """Publish one image and wait for its detections."""
    stamp = images.send(image=image)
    graph.until(
        lambda: any(stamp_ns(message.header) == stamp for message in messages), 'detections'
    )
    return next(message for message in messages if stamp_ns(message.header) == stamp)


def test_finds_people_with_header_name_and_pixels_of_the_image(graph, images, people):
    graph.add(DetectorNode, detect_every_n=1, score_threshold=0.3)
    messages = graph.collect(Detection2DArray, 'detections')
    images.wait_for_subscribers()
    message = answers(graph, images, messages, people)
    assert message.header.frame_id == 'camera'
    assert len(message.detections) >= 3
    height, width = people.shape[:2]
    for detection in message.detections:
        assert detection.id == ''
        assert detection.results[0].hypothesis.class_id == 'person'
        assert 0.3 <= detection.results[0].hypothesis.score <= 1.0
        assert 0 <= detection.bbox.center.position.x <= width
        assert 0 <= detection.bbox.center.position.y <= height
        assert detection.bbox.size_y > detection.bbox.size_x


def test_labels_are_latched_for_who_comes_late(graph):
    graph.add(DetectorNode)
    labels = graph.collect(LabelInfo, 'label_info', LATCHED_QOS)
    graph.until(lambda: labels, 'labels')
    assert [item.class_name for item in labels[0].class_map] == ['person']


def test_every_nth_image_and_live_change_of_n(graph, images):
    node = graph.add(DetectorNode, detect_every_n=3)
    messages = graph.collect(Detection2DArray, 'detections')
    images.wait_for_subscribers()

    def send_and_settle(count, expected):
        for _ in range(count):
            # One at a time: newest-frame-wins would skip some of a burst.
            images.send()
            seen = len(images.stamps_ns)
            graph.until(lambda seen=seen: node.cameras[0].seen == seen, f'image {seen}')
            graph.until(
                lambda: (
                    node.cameras[0].lane.counts.processed == node.cameras[0].lane.counts.received
                ),
                'detector',
            )
        graph.until(lambda: len(messages) >= expected, f'{expected} detections')

    send_and_settle(7, 3)
    assert [stamp_ns(m.header) for m in messages] == images.stamps_ns[0::3]
    assert node.set_parameters([Parameter('detect_every_n', value=1)])[0].successful
    send_and_settle(2, 5)
    assert [stamp_ns(m.header) for m in messages[3:]] == images.stamps_ns[7:]


def test_thresholds_change_live(graph, images, people):
    node = graph.add(DetectorNode, detect_every_n=1, score_threshold=0.3)
    messages = graph.collect(Detection2DArray, 'detections')
    images.wait_for_subscribers()
    before = len(answers(graph, images, messages, people).detections)
    assert node.set_parameters([Parameter('score_threshold', value=1.0)])[0].successful
    assert before > 0
    assert len(answers(graph, images, messages, people).detections) == 0


def test_unknown_class_is_refused_live_and_names_the_known(graph):
    node = graph.add(DetectorNode)
    result = node.set_parameters([Parameter('classes', value='unicorn')])[0]
    assert not result.successful
    assert 'person' in result.reason


def test_model_is_not_live(graph):
    node = graph.add(DetectorNode)
    result = node.set_parameters([Parameter('model_path', value='other.onnx')])[0]
    assert not result.successful
    assert 'configure' in result.reason


def malformed_image(**changes):
    message = Image(height=4, width=4, encoding='bgr8', step=12, data=bytes(48))
    message.header.stamp.sec = 1
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    'message',
    [
        malformed_image(step=5),
        malformed_image(data=bytes(3)),
        malformed_image(encoding='smell8'),
        malformed_image(height=0, data=b''),
    ],
    ids=['step', 'size', 'encoding', 'empty'],
)
def test_malformed_image_is_counted_and_the_node_lives_on(graph, images, people, message):
    node = graph.add(DetectorNode, detect_every_n=1)
    messages = graph.collect(Detection2DArray, 'detections')
    images.wait_for_subscribers()
    images.send_message(message)
    graph.until(lambda: node.cameras[0].input.received == 1, 'the malformed image')
    assert answers(graph, images, messages, people).detections
    graph.until(
        lambda: graph.diagnostics.get('detector', {}).get('failed') == '1', 'a failed count'
    )


def test_unstamped_image_is_refused_with_a_reason(graph, images):
    graph.add(DetectorNode, detect_every_n=1)
    images.wait_for_subscribers()
    images.send(stamp_ns=0)
    graph.until(
        lambda: graph.diagnostics.get('detector', {}).get('failed') == '1', 'a failed count'
    )


def test_missing_model_fails_configure_and_leaves_the_node_unconfigured(graph):
    node = graph.add(DetectorNode, start=False, model_path='no/such/model.onnx')
    with pytest.raises(StartError):
        node.start()
    assert node.state_id == State.PRIMARY_STATE_UNCONFIGURED


def test_stamps_that_jump_back_start_the_count_anew(graph, images):
    node = graph.add(DetectorNode, detect_every_n=2)
    messages = graph.collect(Detection2DArray, 'detections')
    images.wait_for_subscribers()
    now = time.time_ns()
    for offset_s, seen in ((0, 1), (1, 2), (-3600, 1)):
        images.send(stamp_ns=now + offset_s * 10**9)
        graph.until(lambda seen=seen: node.cameras[0].seen == seen, 'the image')
        graph.until(
            lambda: node.cameras[0].lane.counts.processed == node.cameras[0].lane.counts.received,
            'detector',
        )
    graph.until(lambda: len(messages) == 2, 'detections')
    assert stamp_ns(messages[1].header) == images.stamps_ns[2]


def test_diagnostics_say_backend_rate_and_stage_latencies(graph, images, people):
    graph.add(DetectorNode, detect_every_n=1)
    messages = graph.collect(Detection2DArray, 'detections')
    images.wait_for_subscribers()
    for _ in range(3):
        answers(graph, images, messages, people)
    graph.until(
        lambda: graph.diagnostics.get('detector', {}).get('detected') == '3', 'diagnostics'
    )
    values = graph.diagnostics['detector']
    assert values['backend'] in ('onnx', 'openvino')
    assert values['state'] == 'active'
    assert float(values['fps']) > 0
    for stage in ('preprocess', 'inference', 'postprocess', 'publish', 'end_to_end'):
        percentiles = [float(values[f'{stage}_ms.{key}']) for key in ('p50', 'p90', 'p95', 'p99')]
        assert percentiles == sorted(percentiles)
        assert percentiles[0] > 0
        assert float(values[f'{stage}_ms.avg']) > 0


def test_full_lifecycle_twice(graph, images, people):
    node = graph.add(DetectorNode, detect_every_n=1)
    messages = graph.collect(Detection2DArray, 'detections')
    for _ in range(2):
        images.wait_for_subscribers()
        assert answers(graph, images, messages, people).detections
        node.trigger_deactivate()
        node.trigger_cleanup()
        assert node.state_id == State.PRIMARY_STATE_UNCONFIGURED
        node.start()


def test_no_detections_while_inactive(graph, images, people):
    node = graph.add(DetectorNode, detect_every_n=1)
    images.wait_for_subscribers()
    node.trigger_deactivate()
    graph.until(lambda: images._publisher.get_subscription_count() == 0, 'unsubscription')
    messages = graph.collect(Detection2DArray, 'detections')
    images.send(image=people)
    graph.spin_for(0.3)
    assert messages == []


def test_adaptive_schedule_detects_on_what_is_asked_for_and_every_nth_while_nobody_asks(
    graph, images
):
    node = graph.add(DetectorNode, schedule='adaptive', detect_every_n=4)
    messages = graph.collect(Detection2DArray, 'detections')
    requests = graph.node.create_publisher(Header, 'detect_request', RESULTS_QOS)
    images.wait_for_subscribers()
    graph.until(requests.get_subscription_count, 'the detector')

    def send():
        stamp = images.send()
        seen = len(images.stamps_ns)
        graph.until(lambda: node.cameras[0].seen == seen, f'image {seen}')
        return stamp

    def ask(stamp):
        requests.publish(make_header(stamp, ''))
        graph.until(lambda: node.cameras[0].wanted_ns == stamp, 'the request')

    unasked = [send(), send()]
    graph.until(lambda: len(messages) == 1, 'the first image')
    ask(unasked[1])
    graph.until(lambda: len(messages) == 2, 'the image that was asked for')
    early = unasked[1] + 10**9
    ask(early)
    for _ in range(3):
        send()
    images.send(stamp_ns=early)
    graph.until(lambda: len(messages) == 3, 'the image that was asked for before it came')
    assert [stamp_ns(m.header) for m in messages] == [*unasked, early]
