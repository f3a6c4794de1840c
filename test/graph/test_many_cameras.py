"""One detector, several cameras: fair, apart from one another, and told apart."""

from __future__ import annotations

import time
from itertools import islice

import cv2
import httpx
import numpy as np
import onnx
import pytest
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, LabelInfo

from edge_perception import media
from edge_perception.nodes.detector import DetectorNode
from edge_perception.ros.messages import make_header, stamp_ns
from edge_perception.ros.qos import LATCHED_QOS, RESULTS_QOS

PARAMETERS = """\
/**/perception:
  ros__parameters:
    cameras: front left
    members: detector,tracker,visualizer,metrics,gateway
    stale_after_s: 1.0
/**/detector:
  ros__parameters:
    detect_every_n: 2
    cameras: ''
/**/gateway:
  ros__parameters:
    port: 0
    camera: left
"""
SMALL_WH = (480, 360)


@pytest.fixture(scope='module')
def clip(demo_clip):
    with media.open_source(demo_clip) as source:
        return [frame.image for frame in islice(source, 60)]


class Stream:
    """What is sent to one camera, and what comes back."""

    def __init__(self, graph, publisher_type, prefix, images):
        self.images = images
        self.publisher = publisher_type(graph, topic=f'{prefix}/image_raw')
        self.tracks = graph.collect(Detection2DArray, f'{prefix}/tracks')
        self.detections = graph.collect(Detection2DArray, f'{prefix}/detections')

    @property
    def sent_ns(self):
        return self.publisher.stamps_ns

    def send(self):
        self.publisher.send(image=self.images[len(self.sent_ns) % len(self.images)])

    def is_answered(self, every=2):
        """Whether all images have tracks, and every due one detections."""
        due = -(-len(self.sent_ns) // every)
        return len(self.tracks) >= len(self.sent_ns) and len(self.detections) >= due


@pytest.fixture(scope='module')
def running(module_graph, image_publisher, clip, tmp_path_factory):
    """`perception` with two cameras, as a process in a namespace; front has twice the images."""
    graph = module_graph
    file = tmp_path_factory.mktemp('cameras') / 'parameters.yaml'
    file.write_text(PARAMETERS)
    graph.run('perception', '--ros-args', '-r', '__ns:=/robot', '--params-file', str(file))
    small = [cv2.resize(image, SMALL_WH) for image in clip[30:]]
    streams = {
        'front': Stream(graph, image_publisher, '/robot/front', clip[:30]),
        'left': Stream(graph, image_publisher, '/robot/left', small),
    }
    for stream in streams.values():
        stream.publisher.wait_for_subscribers()
    for step in range(20):
        streams['front'].send()
        if step % 2 == 0:
            streams['left'].send()
        graph.until(lambda: all(stream.is_answered() for stream in streams.values()), 'answers')
    return streams


def test_every_image_of_each_camera_has_tracks_and_every_nth_detections(running):
    for stream in running.values():
        assert [stamp_ns(message.header) for message in stream.tracks] == stream.sent_ns
        detected = [stamp_ns(message.header) for message in stream.detections]
        assert detected == stream.sent_ns[::2]
    assert len(running['front'].tracks) == 2 * len(running['left'].tracks)


def test_tracks_are_those_of_the_camera_with_ids_of_its_own(running):
    for stream in running.values():
        ids = [{item.id for item in message.detections} for message in stream.tracks]
        assert '1' in set.union(*ids)
        assert len(ids[-1]) >= 2
        assert ids[-1] & ids[-4], 'ids do not last'
    width, height = SMALL_WH
    boxes = [item.bbox for message in running['left'].tracks for item in message.detections]
    assert all(box.center.position.x <= width for box in boxes)
    assert all(box.center.position.y <= height for box in boxes)
    # The detector read the large images as large ones.
    boxes = [item.bbox for message in running['front'].tracks for item in message.detections]
    assert max(box.center.position.x for box in boxes) > width


def test_each_camera_has_latched_labels(module_graph, running):
    for camera in running:
        labels = module_graph.collect(LabelInfo, f'/robot/{camera}/label_info', LATCHED_QOS)
        module_graph.until(lambda labels=labels: labels, 'labels')
        assert [item.class_name for item in labels[0].class_map] == ['person']


def test_each_camera_has_a_status_of_each_node_and_the_detector_their_sum(module_graph, running):
    diagnostics = module_graph.diagnostics
    expected = {
        f'robot/{camera}/{node}'
        for camera in running
        for node in ('perception', 'detector', 'tracker', 'visualizer')
    }
    module_graph.until(lambda: expected <= diagnostics.keys(), 'a status of each')
    sent = {camera: str(len(stream.sent_ns)) for camera, stream in running.items()}
    module_graph.until(
        lambda: all(
            diagnostics[f'robot/{camera}/{node}']['received'] == sent[camera]
            for camera in running
            for node in ('perception', 'detector', 'tracker')
        ),
        'the counts of each camera',
    )
    total = str(sum(int(count) for count in sent.values()))
    module_graph.until(lambda: diagnostics['robot/detector']['received'] == total, 'the sum')
    assert float(diagnostics['robot/left/detector']['inference_ms.p50']) > 0
    assert diagnostics['robot/left/detector']['backend'] in ('onnx', 'openvino')

    def is_summed_up():
        values = diagnostics['robot/metrics']
        return (
            values['end_to_end_ms.count'] == total
            and values['front/tracker.received'] == sent['front']
            and values['left/tracker.received'] == sent['left']
        )

    module_graph.until(is_summed_up, 'the tracks of both cameras in the summary')


def test_gateway_shows_all_nodes_and_the_tracks_of_its_camera(module_graph, running):
    diagnostics = module_graph.diagnostics
    module_graph.until(lambda: diagnostics.get('robot/gateway', {}).get('url'), 'its address')
    with httpx.Client(
        base_url=diagnostics['robot/gateway']['url'], timeout=20.0, trust_env=False
    ) as http:
        nodes = http.get('/health').json()['nodes']
        for camera in running:
            for node in ('detector', 'tracker'):
                assert nodes[f'{camera}/{node}']['state'] == 'active'
        shown = http.get('/tracks').json()
        metrics = http.get('/metrics', headers={'Accept': 'text/plain'}).text
    assert shown['stamp_ns'] == running['left'].sent_ns[-1]
    for camera in running:
        assert f'"{camera}/tracker"' in metrics
        assert f'"{camera}/detector"' in metrics


def test_a_camera_that_dies_leaves_the_others_alone_and_is_named(module_graph, running):
    front, left = running['front'], running['left']
    diagnostics = module_graph.diagnostics

    def reasons():
        values = diagnostics['robot/metrics']
        return [text for key, text in values.items() if key.startswith('why_no_output.')]

    def go_on(*streams):
        for stream in streams:
            stream.send()
        module_graph.until(lambda: all(each.is_answered() for each in streams), 'answers')
        return reasons()

    def until(condition, *streams):
        end_s = time.monotonic() + 30.0
        while not condition(go_on(*streams)):
            assert time.monotonic() < end_s, reasons()

    until(lambda texts: not texts, front, left)
    until(lambda texts: any('no image on /robot/left/image_raw' in text for text in texts), front)
    assert not any('front' in text for text in reasons())
    assert [stamp_ns(message.header) for message in front.tracks] == front.sent_ns
    until(lambda texts: not texts, front, left)


@pytest.fixture(scope='module')
def detector(module_graph):
    """A detector of two cameras in this process."""
    return module_graph.add(DetectorNode, cameras='fast,slow', detect_every_n=1)


@pytest.fixture(scope='module')
def publishers(module_graph, image_publisher, detector):
    made = [
        image_publisher(module_graph, topic=f'{each.name}/image_raw') for each in detector.cameras
    ]
    for publisher in made:
        publisher.wait_for_subscribers()
    return made


def test_a_camera_that_floods_the_detector_takes_no_turn_of_another(
    module_graph, detector, publishers
):
    fast, slow = detector.cameras
    for count in range(1, 6):
        publishers[1].send()
        while slow.seen < count:
            publishers[0].send()
            module_graph.executor.spin_once(timeout_sec=0.01)
        before = fast.lane.counts.processed
        while slow.lane.counts.processed < count:
            publishers[0].send()
            module_graph.executor.spin_once(timeout_sec=0.01)
        # The one in work, and one whose turn came before.
        assert fast.lane.counts.processed - before <= 2
    assert slow.lane.counts.dropped == 0
    assert fast.lane.counts.dropped > 0


def test_what_is_wrong_with_one_camera_is_said_of_that_one(module_graph, detector, publishers):
    message = Image(height=4, width=4, encoding='smell8', step=12, data=bytes(48))
    message.header.stamp.sec = 1
    publishers[1].send_message(message)
    module_graph.until(
        lambda: 'smell8' in module_graph.levels.get('slow/detector', (b'', ''))[1], 'the reason'
    )
    assert module_graph.diagnostics['slow/detector']['failed'] == '1'
    assert module_graph.diagnostics['fast/detector']['failed'] == '0'
    assert 'smell8' not in module_graph.levels['fast/detector'][1]


def test_each_tracker_asks_for_images_of_its_camera(module_graph, detector, publishers):
    every_n = [Parameter('detect_every_n', value=1000), Parameter('schedule', value='adaptive')]
    assert all(result.successful for result in detector.set_parameters(every_n))
    fast, slow = detector.cameras
    requests = module_graph.node.create_publisher(Header, 'slow/detect_request', RESULTS_QOS)
    module_graph.until(requests.get_subscription_count, 'the detector')
    detections = {
        camera.name: module_graph.collect(Detection2DArray, f'{camera.name}/detections')
        for camera in detector.cameras
    }
    # One stamp for both: cameras with a common trigger.
    stamp = time.time_ns()
    requests.publish(make_header(stamp, ''))
    module_graph.until(lambda: slow.wanted_ns == stamp, 'the request')
    seen = fast.seen
    for publisher in publishers:
        publisher.send(stamp_ns=stamp)
    module_graph.until(lambda: detections['slow'] and fast.seen > seen, 'the image')
    assert [stamp_ns(message.header) for message in detections['slow']] == [stamp]
    assert fast.lane.counts.processed + fast.lane.counts.dropped == fast.lane.counts.received
    assert detections['fast'] == []


@pytest.fixture(scope='module')
def pair_model(default_model, tmp_path_factory):
    """The default model for exactly two images: one alone costs as much as both."""
    model = onnx.load(default_model)
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    for size, value in zip(sizes, (2, 3, 416, 416), strict=True):
        size.dim_value = value
    path = tmp_path_factory.mktemp('model') / 'pair.onnx'
    onnx.save(model, path)
    return path


def boxes(message):
    """The detections of a message, as numbers."""
    return np.array(
        [
            (
                item.bbox.center.position.x,
                item.bbox.center.position.y,
                item.bbox.size_x,
                item.bbox.size_y,
                item.results[0].hypothesis.score,
            )
            for item in message.detections
        ]
    )


def test_images_that_wait_together_go_through_the_network_together_with_the_same_results(
    graph, image_publisher, pair_model, clip
):
    node = graph.add(
        DetectorNode, cameras='front left', detect_every_n=1, model_path=str(pair_model)
    )
    images = {'front': clip[0], 'left': cv2.resize(clip[40], SMALL_WH)}
    publishers = {name: image_publisher(graph, topic=f'{name}/image_raw') for name in images}
    messages = {name: graph.collect(Detection2DArray, f'{name}/detections') for name in images}
    graph.until(
        lambda: all(camera._publisher.get_subscription_count() for camera in node.cameras),
        'the subscriptions',
    )
    for name, publisher in publishers.items():
        publisher.wait_for_subscribers()
        publisher.send(image=images[name])
        graph.until(lambda name=name: messages[name], f'detections of {name}')

    def inference_ms():
        return [camera.latencies.totals()['inference'].sum_ms for camera in node.cameras]

    alone_ms = inference_ms()
    with node._worker.wake:  # the detector is busy, until both wait
        for name, publisher in publishers.items():
            publisher.send(image=images[name])
        graph.until(lambda: all(camera.seen == 2 for camera in node.cameras), 'both images')
    graph.until(lambda: all(len(each) == 2 for each in messages.values()), 'both detections')
    # Both have waited for one run of the network.
    front_ms, left_ms = (
        after - before for before, after in zip(alone_ms, inference_ms(), strict=True)
    )
    assert front_ms == pytest.approx(left_ms, abs=1e-6)
    for alone, together in messages.values():
        assert len(alone.detections) >= 2
        np.testing.assert_allclose(boxes(together), boxes(alone), atol=1e-2)
