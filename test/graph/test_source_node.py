"""The source node on the real middleware."""

import time

import cv2
import numpy as np
import pytest
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from edge_perception.nodes.source import SourceNode
from edge_perception.ros.images import compressed_to_frame, image_to_frame
from edge_perception.ros.lifecycle import StartError
from edge_perception.ros.messages import stamp_ns
from edge_perception.ros.qos import image_qos

QOS = image_qos(50, reliable=True)


@pytest.fixture
def folder(tmp_path):
    """Ten images whose brightness is their number."""
    for i in range(10):
        cv2.imwrite(str(tmp_path / f'{i:02d}.png'), np.full((48, 64, 3), 20 * i, np.uint8))
    return tmp_path


def test_images_come_in_order_at_the_asked_rate_with_stamps_of_that_rate(graph, folder):
    messages = graph.collect(Image, 'image_raw', QOS)
    started_ns = time.time_ns()
    graph.add(SourceNode, source=str(folder), rate_hz=20.0, wait_for_subscriber=True)
    graph.until(lambda: len(messages) == 10, 'ten images')
    frames = [image_to_frame(message) for message in messages]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [20 * i for i in range(10)]
    stamps = np.array([frame.stamp_ns for frame in frames])
    np.testing.assert_allclose(np.diff(stamps) / 1e6, 50.0, atol=0.01)
    # Real time: the last image is not out before its stamp.
    assert stamps[0] >= started_ns
    assert time.time_ns() >= stamps[-1]
    assert frames[0].frame_id == 'camera'
    graph.until(lambda: graph.diagnostics.get('source', {}).get('finished') == 'true', 'the end')
    assert graph.diagnostics['source']['published'] == '10'


def test_loop_goes_on_with_growing_stamps(graph, folder):
    messages = graph.collect(Image, 'image_raw', QOS)
    graph.add(SourceNode, source=str(folder), rate_hz=100.0, loop=True, wait_for_subscriber=True)
    graph.until(lambda: len(messages) >= 25, 'two rounds and a half')
    stamps = [stamp_ns(message.header) for message in messages]
    assert stamps == sorted(set(stamps))


def test_compressed_and_calibration_topics(graph, folder, tmp_path):
    compressed = graph.collect(CompressedImage, 'image_raw/compressed', QOS)
    infos = graph.collect(CameraInfo, 'camera_info', QOS)
    graph.add(SourceNode, source=str(folder), rate_hz=20.0, loop=True, wait_for_subscriber=True)
    graph.until(lambda: compressed and infos, 'both topics')
    assert compressed_to_frame(compressed[0]).image.shape == (48, 64, 3)
    assert (infos[0].width, infos[0].height) == (64, 48)
    assert infos[0].k[0] == 0.0  # uncalibrated, as ROS says it


def test_video_file_keeps_its_rate(graph, demo_clip):
    messages = graph.collect(Image, 'image_raw', QOS)
    graph.add(SourceNode, source=str(demo_clip), wait_for_subscriber=True)
    graph.until(lambda: len(messages) >= 5, 'five images')
    stamps = np.array([stamp_ns(message.header) for message in messages])
    np.testing.assert_allclose(np.diff(stamps) / 1e6, 100.0, atol=0.01)


def test_missing_file_fails_configure(graph):
    node = graph.add(SourceNode, start=False, source='no/such/clip.mp4')
    with pytest.raises(StartError):
        node.start()


def test_deactivate_stops_and_activate_starts_from_the_beginning(graph, folder):
    messages = graph.collect(Image, 'image_raw', QOS)
    node = graph.add(SourceNode, source=str(folder), rate_hz=20.0, wait_for_subscriber=True)
    graph.until(lambda: len(messages) >= 2, 'images')
    node.trigger_deactivate()
    graph.spin_for(0.2)
    count = len(messages)
    graph.spin_for(0.3)
    assert len(messages) == count < 10
    node.trigger_activate()
    graph.until(lambda: len(messages) > count, 'images again')
    assert image_to_frame(messages[count]).image.max() == 0


def test_nothing_is_sent_before_somebody_subscribes(graph, folder):
    node = graph.add(SourceNode, source=str(folder), rate_hz=100.0, wait_for_subscriber=True)
    graph.spin_for(0.3)
    assert node._published == 0
    messages = graph.collect(Image, 'image_raw', QOS)
    graph.until(lambda: len(messages) == 10, 'all images')


def test_quality_of_compressed_images_is_live(graph, folder):
    node = graph.add(SourceNode, source=str(folder), loop=True, rate_hz=20.0)
    assert node.set_parameters([Parameter('jpeg_quality', value=10)])[0].successful
    assert not node.set_parameters([Parameter('jpeg_quality', value=0)])[0].successful
