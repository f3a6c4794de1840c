"""Processes that are killed, or interrupted at any moment."""

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
from sensor_msgs.msg import CameraInfo
from vision_msgs.msg import Detection2DArray

from edge_perception.ros.messages import stamp_ns
from edge_perception.ros.qos import image_qos


def ids(message):
    return [detection.id for detection in message.detections]


def test_each_process_may_be_killed_and_come_back(graph, kill, demo_clip):
    def source():
        return graph.run('source', source=json.dumps(str(demo_clip)), loop='true')

    def detector():
        return graph.run('detector', detect_every_n=2)

    running = {
        'detector': detector(),
        'tracker': graph.run('tracker'),
        'source': source(),
    }
    tracks = graph.collect(Detection2DArray, 'tracks')
    detections = graph.collect(Detection2DArray, 'detections')
    # One with every image.
    infos = graph.collect(CameraInfo, 'camera_info', image_qos(50, reliable=True))

    def tracked():
        return tracks and len(tracks[-1].detections) >= 3

    graph.until(tracked, 'tracked people')

    # Without the detector every image is answered still, and its people stay for a while.
    kill(running['detector'])
    killed_ns, before = time.time_ns(), set(ids(tracks[-1]))
    graph.until(lambda: stamp_ns(tracks[-1].header) > killed_ns + 300_000_000, 'tracks go on')
    assert len(before & set(ids(tracks[-1]))) >= 2, 'they are coasting'
    graph.until(lambda: not tracks[-1].detections, 'nobody is kept who is not seen any more')
    detector()
    count = len(detections)
    graph.until(lambda: len(detections) > count and tracked(), 'people again')
    answered = {stamp_ns(message.header) for message in tracks}
    meanwhile = [
        stamp for info in infos if killed_ns < (stamp := stamp_ns(info.header)) <= max(answered)
    ]
    lost = [stamp for stamp in meanwhile if stamp not in answered]
    assert len(lost) <= 0.02 * len(meanwhile), f'{len(lost)} of {len(meanwhile)} images'

    kill(running['tracker'])
    count = len(tracks)
    graph.run('tracker')
    graph.until(lambda: len(tracks) > count and tracked(), 'tracks of the new tracker')

    kill(running['source'])
    killed_ns = time.time_ns()
    source()
    graph.until(
        lambda: stamp_ns(tracks[-1].header) > killed_ns and tracked(), 'tracks of the new source'
    )
    for message in tracks:
        assert len(set(ids(message))) == len(message.detections)
    stamps = [stamp_ns(message.header) for message in tracks]
    assert len(set(stamps)) == len(stamps)


PIPELINE = {'perception__members': 'source,detector,tracker,visualizer,metrics,gateway'}


def test_shared_memory_of_a_killed_process_is_freed_by_the_next_start(graph, kill):
    def start(name):
        process = graph.run(name)
        graph.until(
            lambda: graph.diagnostics.get(name, {}).get('state') == 'active', 'the running node'
        )
        return process

    def segments(process):
        """What a program of Fast DDS has made, and the locks that it holds on them."""
        opened = {file.resolve() for file in Path(f'/proc/{process.pid}/fd').iterdir()}
        locks = [path for path in opened if re.fullmatch(r'fast\w+_[0-9a-f]{16}_el', path.name)]
        return locks + [path.with_name(path.name.removesuffix('_el')) for path in locks]

    killed, alive = start('tracker'), start('metrics')
    left, used = segments(killed), segments(alive)
    assert len(left) >= 2
    assert len(used) >= 2
    kill(killed)
    assert all(path.exists() for path in left)
    # As if it were longer ago: what is new is not touched.
    for path in left + used:
        os.utime(path, (0, 0))
    start('visualizer')
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in used)


@pytest.mark.parametrize('moment', ['imports', 'loads', 'runs'])
@pytest.mark.parametrize(
    'signals',
    [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGINT)],
    ids=['interrupt', 'terminate', 'twice'],
)
def test_the_pipeline_ends_soon_and_quietly_at_any_moment(graph, end, demo_clip, signals, moment):
    process = graph.run(
        'perception',
        **PIPELINE,
        gateway__port=0,
        source__source=json.dumps(str(demo_clip)),
        source__loop='true',
    )
    graph.processes.remove(process)
    if moment == 'imports':
        maps = psutil.Process(process.pid).memory_maps
        graph.until(lambda: any('numpy' in each.path for each in maps()), 'the imports')
    elif moment == 'loads':
        graph.until(lambda: 'detector' in graph.node.get_node_names(), 'the detector')
    else:
        tracks = graph.collect(Detection2DArray, 'tracks')
        graph.until(lambda: len(tracks) >= 3, 'tracks')
    end(process, *signals)


@pytest.mark.parametrize('name', ['source', 'tracker', 'metrics', 'visualizer', 'gateway'])
def test_single_nodes_end_soon_and_quietly_while_they_run(graph, end, demo_clip, name):
    parameters = {
        'source': {'source': json.dumps(str(demo_clip))},
        'gateway': {'port': 0},
    }.get(name, {})
    process = graph.run(name, **parameters)
    graph.until(
        lambda: graph.diagnostics.get(name, {}).get('state') == 'active', 'the running node'
    )
    graph.processes.remove(process)
    end(process, signal.SIGINT, signal.SIGINT)


def test_source_that_waits_for_a_camera_ends_soon(graph, end):
    """The camera takes the connection and says nothing, as one that is just starting does."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        url = f'http://127.0.0.1:{server.getsockname()[1]}/stream'
        process = graph.run('source', source=url, timeout_s=60.0)
        graph.processes.remove(process)
        server.settimeout(30.0)
        connection, _ = server.accept()
        with connection:
            end(process, signal.SIGINT)


@pytest.mark.parametrize('moment', ['begins', 'runs'])
def test_demo_ends_soon_with_what_it_has_and_status_0(
    end, start_demo, demo_clip, tmp_path, moment
):
    process = start_demo('--source', demo_clip, '--out', tmp_path / 'out', '--port', '0')
    if moment == 'runs':
        assert any(' fps ' in line for line in process.stdout)
    else:
        log, deadline_s = tmp_path / 'out' / 'perception.log', time.monotonic() + 30.0
        while not log.exists():
            assert time.monotonic() < deadline_s
    output = end(process, signal.SIGINT)
    assert 'images answered' in output
    assert not list((tmp_path / 'out').glob('**/*.part*'))
