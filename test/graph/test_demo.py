"""The demo as a person starts it, on a short clip."""

import json
import signal
from functools import partial

import cv2
import pytest
from rosbags.highlevel import AnyReader

from edge_perception import media
from edge_perception.media.mot import read_mot

FRAMES = 30


@pytest.fixture
def start(start_demo, tmp_path):
    return partial(start_demo, '--out', tmp_path / 'out')


def test_demo_leaves_tracks_bag_video_and_report(start, demo_beginning, tmp_path):
    process = start('--source', demo_beginning(FRAMES), '--every-n', '2')
    output, _ = process.communicate(timeout=60.0)
    assert process.returncode == 0, output
    assert f'{FRAMES} of {FRAMES}' in output
    out = tmp_path / 'out'

    report = json.loads((out / 'report.json').read_text())
    assert report['frames'] == report['tracks_messages'] == FRAMES
    assert report['detections_messages'] >= 5
    assert report['diagnostics']['detector']['detect_every_n'] == '2'
    assert 0 < report['tracks_latency']['p50_ms'] < report['tracks_latency']['p99_ms']

    tracks = read_mot(out / 'tracks.txt')
    assert set(tracks.frame) <= set(range(1, FRAMES + 1))
    assert max(tracks.frame) == FRAMES
    assert len(tracks.on_frame(FRAMES)) >= 3

    video = cv2.VideoCapture(str(out / 'annotated.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) >= FRAMES - 2
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(10.0)

    with AnyReader([out / 'bag']) as bag:
        counts = {item.topic: item.msgcount for item in bag.connections}
        types = {item.topic: item.msgtype for item in bag.connections}
        assert counts['/tracks'] == counts['/image_raw/compressed'] == FRAMES
        assert counts['/label_info'] == 1
        assert counts['/diagnostics'] >= 3
        assert types['/detections'] == 'vision_msgs/msg/Detection2DArray'
        stamps = {}
        for connection, _, data in bag.messages():
            if connection.topic in ('/tracks', '/image_raw/compressed'):
                header = bag.deserialize(data, connection.msgtype).header
                stamps.setdefault(connection.topic, []).append(
                    (header.stamp.sec, header.stamp.nanosec)
                )
    assert stamps['/tracks'] == stamps['/image_raw/compressed']
    with media.open_source(out / 'bag') as source:
        assert source.frame_count == FRAMES


def test_interrupt_ends_the_demo_with_what_it_has(start, demo_clip, tmp_path):
    process = start('--source', demo_clip)
    for line in process.stdout:
        if ' fps ' in line:
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20.0)
    assert 'images answered' in output
    assert 'Traceback' not in output
    assert (tmp_path / 'out' / 'tracks.txt').exists()
    assert (tmp_path / 'out' / 'bag' / 'metadata.yaml').exists()


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (['--source', 'no/such.mp4'], 'no/such.mp4'),
        (['--model', 'no/such.onnx'], 'no/such.onnx'),
        (['--backend', 'abacus'], 'abacus'),
        (['--every-n', '0'], 'every-n'),
    ],
)
def test_what_cannot_work_is_said_in_a_line(start, arguments, reason):
    process = start(*arguments)
    output, _ = process.communicate(timeout=40.0)
    assert process.returncode != 0
    assert reason in output
    assert 'Traceback' not in output
