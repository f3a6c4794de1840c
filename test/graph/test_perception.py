"""The whole pipeline in one process and in several, as executables."""

import json
import signal
import subprocess
import sys
import time

import pytest
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray, LabelInfo

from edge_perception import media
from edge_perception.ros.messages import stamp_ns
from edge_perception.ros.qos import LATCHED_QOS, image_qos


def end(process, signum=signal.SIGINT):
    """Signal a process and return its exit status and output."""
    process.send_signal(signum)
    output, _ = process.communicate(timeout=10.0)
    return process.returncode, output


def test_one_process_answers_every_image_of_another_and_tracks_people(graph, images, demo_clip):
    graph.run('perception', detector__detect_every_n=2)
    tracks = graph.collect(Detection2DArray, 'tracks')
    detections = graph.collect(Detection2DArray, 'detections')
    labels = graph.collect(LabelInfo, 'label_info', LATCHED_QOS)
    images.wait_for_subscribers()
    graph.until(lambda: labels, 'labels')
    start = time.time_ns()
    with media.open_source(demo_clip) as source:
        for count, frame in zip(range(1, 31), source, strict=False):
            images.send(stamp_ns=start + frame.stamp_ns, image=frame.image)
            graph.until(lambda count=count: len(tracks) >= count, f'tracks {count}')
            # The clip runs faster than real time here: the detector must keep up all the same.
            found = (count + 1) // 2
            graph.until(lambda found=found: len(detections) >= found, f'detections {found}')
    assert [stamp_ns(message.header) for message in tracks] == images.stamps_ns
    assert {stamp_ns(message.header) for message in detections} <= set(images.stamps_ns[::2])
    ids = [{detection.id for detection in message.detections} for message in tracks]
    assert len(ids[-1]) >= 3
    assert len(ids[-1] & ids[-10]) >= 2, 'ids do not last for a second'
    for message in tracks:
        numbers = [detection.id for detection in message.detections]
        assert len(set(numbers)) == len(numbers)
    assert {label.class_name for label in labels[0].class_map} == {'person'}
    for name in ('detector', 'tracker', 'visualizer', 'metrics', 'perception'):
        graph.until(lambda name=name: name in graph.diagnostics, f'diagnostics of {name}')


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_perception_with_its_own_source_ends_cleanly(graph, demo_clip, signum):
    process = graph.run(
        'perception',
        perception__members='source,detector,tracker,visualizer,metrics',
        source__source=json.dumps(str(demo_clip)),
    )
    tracks = graph.collect(Detection2DArray, 'tracks')
    annotated = graph.collect(Image, 'image_annotated', image_qos(5))
    graph.until(lambda: len(tracks) >= 10 and annotated, 'tracks and drawn images')
    status, output = end(process, signum)
    assert status == 0, output
    assert 'Traceback' not in output


def test_separate_processes_do_the_same(graph, demo_clip):
    processes = [
        graph.run('tracker'),
        graph.run('detector'),
        graph.run('visualizer'),
        graph.run('metrics'),
        graph.run('source', source=json.dumps(str(demo_clip)), wait_for_subscriber='true'),
    ]
    tracks = graph.collect(Detection2DArray, 'tracks')
    annotated = graph.collect(Image, 'image_annotated', image_qos(5))
    graph.until(
        lambda: annotated and any(len(message.detections) >= 3 for message in tracks),
        'tracked people and drawn images',
    )
    for process in processes:
        status, output = end(process)
        assert status == 0, output
        assert 'Traceback' not in output


@pytest.mark.parametrize(
    ('parameters', 'message'),
    [
        ({'detector__model_path': 'no/such.onnx'}, 'no/such.onnx'),
        ({'detector__score_threshold': '7.0'}, 'score_threshold: 7.0 is not in 0 to 1'),
        ({'perception__members': 'detector,painter'}, 'painter is not one of'),
        ({'perception__cameras': 'front,/left'}, "'/left' is no relative namespace"),
        ({'perception__cameras': 'front,front'}, 'names a camera twice'),
        (
            {'detector__detect_every_n': 'often'},
            "detect_every_n: expected int such as 5, got 'often'",
        ),
    ],
)
def test_what_cannot_work_ends_with_one_line_and_status_1(graph, parameters, message):
    process = graph.run('perception', **parameters)
    output, _ = process.communicate(timeout=30.0)
    assert process.returncode == 1
    assert message in output
    assert 'Traceback' not in output
    graph.processes.clear()


def test_second_interrupt_while_it_ends_changes_nothing(graph, images):
    process = graph.run('perception')
    images.wait_for_subscribers()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    status, output = end(process)
    assert status == 0, output
    assert 'Traceback' not in output


def test_interrupt_while_the_model_loads(graph):
    process = graph.run('detector')
    graph.until(lambda: 'detector' in graph.node.get_node_names(), 'the node')
    status, output = end(process)
    assert status == 0, output
    assert 'Traceback' not in output


def test_help_of_the_demo_is_printed_without_a_graph():
    output = subprocess.run(
        [sys.executable, '-m', 'edge_perception.nodes.demo', '--help'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert '--source' in output
