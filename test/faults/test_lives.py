"""Nodes that are taken through their life many times."""

import psutil
from vision_msgs.msg import Detection2DArray

from edge_perception.nodes.detector import DetectorNode
from edge_perception.nodes.metrics import MetricsNode
from edge_perception.nodes.source import SourceNode
from edge_perception.nodes.tracker import TrackerNode
from edge_perception.nodes.visualizer import VisualizerNode
from edge_perception.ros.links import Links


def test_fifty_lives_leave_nothing_behind(graph, demo_clip):
    links = Links()
    nodes = [
        graph.add(MetricsNode, links=links, start=False),
        graph.add(VisualizerNode, links=links, start=False),
        graph.add(TrackerNode, links=links, start=False),
        graph.add(DetectorNode, links=links, start=False, backend='onnx'),
        graph.add(SourceNode, links=links, start=False, source=str(demo_clip), rate_hz=50.0),
    ]
    tracks = graph.collect(Detection2DArray, 'tracks')
    process = psutil.Process()

    def live():
        for node in nodes:
            node.start()
        count = len(tracks)
        graph.until(lambda: len(tracks) > count, 'tracks')
        for node in reversed(nodes):
            node.trigger_deactivate()
            node.trigger_cleanup()

    def rss_mib():
        return process.memory_info().rss / 2**20

    for _ in range(10):
        live()
    fds, threads, rss_before_mib = process.num_fds(), process.num_threads(), rss_mib()
    for _ in range(50):
        live()
    # A thread that was joined is still counted until the system has taken it away.
    graph.until(lambda: process.num_threads() <= threads, 'threads to be gone', deadline_s=5.0)
    assert process.num_fds() <= fds
    # The arenas of malloc still take their share for a while, up to 100 MiB. Each life that stayed
    # would be 20: a model, a decoder with its pictures.
    assert rss_mib() - rss_before_mib < 200.0
