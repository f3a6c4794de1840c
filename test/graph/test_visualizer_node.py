"""The visualizer on the real middleware."""

import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Detection2DArray

from edge_perception.nodes.visualizer import VisualizerNode
from edge_perception.ros.images import compressed_to_frame, image_to_frame
from edge_perception.ros.links import Stamped
from edge_perception.ros.messages import to_message
from edge_perception.ros.qos import RESULTS_QOS, image_qos
from edge_perception.types import Tracks


def tracks_at(box):
    return Tracks(
        xyxy=np.array([box], np.float32),
        score=np.array([0.9], np.float32),
        class_id=np.zeros(1, np.int32),
        track_id=np.array([3], np.int64),
        age_s=np.zeros(1, np.float32),
        time_since_detection_s=np.zeros(1, np.float32),
        source=np.zeros(1, np.uint8),
    )


def test_draws_the_tracks_of_the_same_stamp_raw_and_compressed(graph, images):
    graph.add(VisualizerNode)
    raw = graph.collect(Image, 'image_annotated', image_qos(5))
    compressed = graph.collect(CompressedImage, 'image_annotated/compressed', image_qos(5))
    publisher = graph.node.create_publisher(Detection2DArray, 'tracks', RESULTS_QOS)
    images.wait_for_subscribers()
    graph.until(lambda: publisher.get_subscription_count(), 'the visualizer')
    images.image[:] = 0
    stamp = images.send()
    publisher.publish(
        to_message(Stamped(tracks_at([100, 60, 200, 180]), stamp, 'camera', {0: 'person'}))
    )
    graph.until(lambda: raw and compressed, 'both images')
    drawn = image_to_frame(raw[0])
    assert drawn.stamp_ns == stamp
    assert raw[0].header.frame_id == 'camera'
    assert drawn.image[120, 98:103].max() > 100, 'no left edge'
    assert drawn.image[120, 150].max() == 0, 'the inside is covered'
    assert drawn.image[230, 300].max() == 0
    assert compressed_to_frame(compressed[0]).image.shape == drawn.image.shape


def test_takes_in_no_images_while_nobody_looks(graph, images):
    node = graph.add(VisualizerNode)
    graph.until(lambda: 'watched' in graph.diagnostics.get('visualizer', {}), 'diagnostics')
    assert graph.diagnostics['visualizer']['watched'] == 'false'
    assert images._publisher.get_subscription_count() == 0
    subscription = graph.node.create_subscription(
        Image, 'image_annotated', lambda message: None, image_qos(1)
    )
    images.wait_for_subscribers()
    graph.node.destroy_subscription(subscription)
    graph.until(lambda: images._publisher.get_subscription_count() == 0, 'the end of interest')
    assert node._frames == {}
