"""The reasons for an absent output, each produced for real, as the metrics node words them."""

import os
import time

import pytest
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from edge_perception.nodes.detector import DetectorNode
from edge_perception.nodes.metrics import MetricsNode
from edge_perception.nodes.source import SourceNode
from edge_perception.nodes.tracker import TrackerNode
from edge_perception.ros.images import frame_to_image
from edge_perception.ros.lifecycle import StartError
from edge_perception.types import Frame

SECOND_NS = 1_000_000_000


@pytest.fixture(autouse=True)
def impatient_probe(impatient, monkeypatch):
    """The same for the look at a detector that finds nothing."""
    monkeypatch.setattr('edge_perception.nodes.detector.PROBE_AFTER_S', 0.5)


def reasons(graph):
    """What the metrics node says now."""
    values = graph.diagnostics.get('metrics', {})
    return [value for key, value in values.items() if key.startswith('why_no_output.')]


def wait_for_reason(graph, *parts):
    """Until one of the reasons holds all of `parts`; returns it."""

    def matching():
        return [text for text in reasons(graph) if all(part in text for part in parts)]

    graph.until(matching, f'a reason with {parts}; the last: {reasons(graph)}')
    return matching()[0]


def wait_for_warning(graph, text):
    """Until the message of the metrics node holds `text`."""
    graph.until(lambda: text in graph.levels.get('metrics', (b'', ''))[1], f'the warning {text}')


@pytest.fixture
def metrics(graph):
    return graph.add(MetricsNode, nodes='tracker')


def test_no_publisher_and_where_images_are_instead(graph, metrics):
    graph.node.create_publisher(Image, 'front/image_raw', 1)
    graph.node.create_publisher(Image, 'back/picture', 1)
    graph.add(TrackerNode, stale_after_s=0.2)
    text = wait_for_reason(graph, 'no publisher on /image_raw')
    assert text.index('/front/image_raw') < text.index('/back/picture'), 'the more similar first'
    assert graph.levels['metrics'][1].startswith('tracker: no publisher on /image_raw')


def test_no_publisher_anywhere(graph, metrics):
    graph.add(TrackerNode, stale_after_s=0.2)
    wait_for_reason(graph, 'no publisher on /image_raw', 'nobody publishes images')


def test_only_the_other_transport_is_published(graph, metrics):
    graph.node.create_publisher(CompressedImage, 'image_raw/compressed', 1)
    graph.add(TrackerNode, stale_after_s=0.2)
    wait_for_reason(graph, 'on /image_raw/compressed: set image_transport to compressed')


def test_incompatible_qos(graph, metrics):
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    graph.node.create_publisher(Image, 'image_raw', best_effort)
    graph.add(TrackerNode, stale_after_s=0.2, image_reliable=True)
    wait_for_reason(graph, 'incompatible QoS on /image_raw', 'RELIABILITY', 'image_reliable')


def test_publisher_that_publishes_nothing(graph, metrics, images):
    graph.add(TrackerNode, stale_after_s=0.2)
    wait_for_reason(graph, 'no image on /image_raw yet, though it has a publisher')


def test_camera_that_went_silent(graph, metrics, images):
    graph.add(TrackerNode, stale_after_s=0.5)
    images.wait_for_subscribers()
    images.send()
    wait_for_reason(graph, 'no image on /image_raw for', 'though it has a publisher')


def send_until_reason(graph, images, *parts, message=None, stamp_ns=None):
    """Keep images coming, as a camera does, until the reason is there."""
    images.wait_for_subscribers()

    def step():
        if images.is_due():
            if message is not None:
                images.send_message(message)
            else:
                images.send(stamp_ns=stamp_ns() if stamp_ns else None)
        return any(all(part in text for part in parts) for text in reasons(graph))

    graph.until(step, f'a reason with {parts}')


def test_unstamped_images(graph, metrics, images):
    graph.add(TrackerNode)
    send_until_reason(graph, images, 'has no stamp: set header.stamp', stamp_ns=lambda: 0)


def test_unsupported_encoding(graph, metrics, images):
    graph.add(TrackerNode)
    message = frame_to_image(Frame(images.image, time.time_ns(), 'camera'))
    message.encoding = 'smell8'
    send_until_reason(graph, images, "encoding 'smell8'", message=message)


def test_stamps_in_the_future(graph, metrics, images):
    graph.add(TrackerNode)
    send_until_reason(
        graph,
        images,
        's in the future: the clocks',
        stamp_ns=lambda: time.time_ns() + 60 * SECOND_NS,
    )


def test_clock_that_jumps_back(graph, metrics, images):
    graph.add(TrackerNode)
    images.wait_for_subscribers()
    now_ns = time.time_ns()
    for stamp_ns in (now_ns, now_ns - 3600 * SECOND_NS):
        images.send(stamp_ns=stamp_ns)
    wait_for_warning(graph, 'stamps of images jumped back by 3600.0 s')


def test_clock_of_the_machine_that_is_set(graph, metrics):
    graph.until(lambda: 'metrics' in graph.diagnostics, 'diagnostics')
    # What the node remembers of the clock, as if it had been set by three seconds since.
    metrics._clock_offset_s -= 3.0
    wait_for_warning(graph, 'the clock of this machine was set by +3.0 s')


def test_detector_that_is_inactive(graph):
    graph.add(MetricsNode, nodes='detector')
    detector = graph.add(DetectorNode)
    detector.trigger_deactivate()
    wait_for_reason(graph, 'detector: node is inactive')


def test_detector_that_is_loading(graph, tmp_path):
    graph.add(MetricsNode, nodes='detector')
    labels = tmp_path / 'labels.txt'
    os.mkfifo(labels)  # loading waits here until somebody writes
    graph.run('detector', labels=str(labels))
    wait_for_reason(graph, 'detector: node is loading what it needs')
    labels.write_text('walker\n')
    graph.until(lambda: graph.diagnostics['detector'].get('state') == 'active', 'activation')


def test_node_that_does_not_run(graph):
    graph.add(MetricsNode, nodes='detector', silent_after_s=1.5)
    wait_for_reason(graph, 'detector is silent: it does not run')


def test_node_that_was_killed(graph):
    graph.add(MetricsNode, nodes='tracker', silent_after_s=1.5)
    process = graph.run('tracker')
    graph.until(lambda: graph.levels.get('tracker', ('', ''))[0] != '', 'the tracker')
    graph.processes.remove(process)
    process.kill()
    process.communicate()
    wait_for_reason(graph, 'tracker is silent for', 'it ended, or hangs')


def test_model_without_the_wanted_class(graph):
    graph.add(MetricsNode, nodes='detector', silent_after_s=1.5)
    detector = graph.add(DetectorNode, start=False, classes='unicorn')
    with pytest.raises(StartError):
        detector.start()
    wait_for_reason(graph, 'detector:', 'unicorn', 'person')


def test_process_that_ended_for_want_of_a_class_left_its_reason(graph):
    graph.add(MetricsNode, nodes='detector', silent_after_s=1.5)
    process = graph.run('detector', classes='unicorn')
    graph.until(lambda: process.poll() is not None, 'the end of the process')
    graph.processes.remove(process)
    process.stdout.close()
    wait_for_reason(graph, 'detector ended:', 'unicorn')


def test_score_threshold_above_everything_seen(graph, metrics, images, people):
    graph.add(TrackerNode)
    detector = graph.add(DetectorNode, detect_every_n=1, score_threshold=0.99)
    images.image = people
    send_until_reason(graph, images, 'the best score seen is 0.', 'score_threshold is 0.99')
    assert graph.levels['metrics'][0] != b'\x00', 'people are clearly there'
    detector.set_parameters([Parameter('score_threshold', value=0.3)])
    sent = len(images.stamps_ns)
    heard = None

    def step():
        nonlocal heard
        # An image each second: one that is lost on a busy machine must not be the last.
        if graph.diagnostics['tracker'] is not heard:
            heard = graph.diagnostics['tracker']
            images.send()
        return len(images.stamps_ns) > sent + 3 and not reasons(graph)

    graph.until(step, 'output, and no reason any more')


def test_empty_scene_is_no_warning_and_still_explained(graph, metrics, images):
    graph.add(TrackerNode)
    graph.add(DetectorNode, detect_every_n=1)
    images.image[:] = 114
    send_until_reason(graph, images, 'nothing found for', 'the best score seen is 0.0')
    assert 'best score' not in graph.levels['metrics'][1]


def test_source_at_its_end(graph, metrics, tmp_path, people):
    import cv2

    cv2.imwrite(str(tmp_path / 'one.png'), people)
    graph.add(TrackerNode)
    graph.add(SourceNode, source=str(tmp_path), rate_hz=100.0)
    wait_for_reason(graph, 'source:', 'is at its end')


def test_reasons_end_when_tracks_come(graph, metrics, images, people):
    graph.add(TrackerNode, stale_after_s=0.2)
    graph.add(DetectorNode, detect_every_n=1)
    wait_for_reason(graph, 'no image on /image_raw')
    images.image = people
    images.wait_for_subscribers(2)

    def step():
        if images.is_due():
            images.send()
        return not reasons(graph)

    graph.until(step, 'no reasons')
