"""Images that change, jump, stop and come back; and a disk that is full."""

import itertools
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2DArray

from edge_perception.media import MediaError
from edge_perception.media.bag import BagWriter
from edge_perception.media.video import VideoWriter
from edge_perception.nodes.source import SourceNode
from edge_perception.ros.messages import make_header, stamp_ns
from edge_perception.ros.qos import image_qos

SECOND_NS = 10**9


def noise(height, width, channels):
    return np.random.default_rng(0).integers(0, 255, (height, width, channels), np.uint8)


def message_of(stamp, encoding, height, width, channels=3):
    data = noise(height, width, channels)
    return Image(
        header=make_header(stamp, 'camera'),
        height=height,
        width=width,
        encoding=encoding,
        step=width * channels,
        data=data.tobytes(),
    )


def test_every_image_is_answered_whatever_its_size_encoding_and_stamp(graph, images):
    graph.run('perception', detector__detect_every_n=1)
    tracks = graph.collect(Detection2DArray, 'tracks')
    images.wait_for_subscribers()
    graph.until(lambda: tracks or images.send() is None, 'the first tracks')

    def is_answered(stamp):
        return any(stamp_ns(message.header) == stamp for message in tracks)

    now = time.time_ns()
    stamps = itertools.count(now, SECOND_NS // 30)
    cases = [
        (next(stamps), 'bgr8', 480, 640),
        (next(stamps), 'bgr8', 720, 1280),  # another resolution
        (next(stamps), 'rgb8', 720, 1280),  # another encoding
        (next(stamps), 'mono8', 720, 1280, 1),
        (next(stamps), 'bgra8', 16, 16, 4),  # smaller than any point can be followed in
        (next(stamps), 'bayer_rggb8', 480, 640, 1),
        (next(stamps), 'bgr8', 480, 640),
        (now - 3600 * SECOND_NS, 'bgr8', 480, 640),  # back, as when a bag begins again
        (now - 3599 * SECOND_NS, 'bgr8', 480, 640),
        (now + 7200 * SECOND_NS, 'bgr8', 480, 640),  # forward
        (now + 7200 * SECOND_NS, 'bgr8', 480, 640),  # the same again
        (now + 10 * SECOND_NS, 'bgr8', 480, 640),
        (1, 'bgr8', 480, 640),
        (2**31 * SECOND_NS - 1, 'bgr8', 480, 640),  # the last that a message can carry
        (now + 11 * SECOND_NS, 'bgr8', 480, 640),
    ]
    for case in cases:
        images.send_message(message_of(*case))
        graph.until(lambda case=case: is_answered(case[0]), f'tracks of {case}')
    failed = int(graph.diagnostics.get('tracker', {}).get('failed', 0))
    images.send_message(message_of(0, 'bgr8', 480, 640))
    stamp = images.send(stamp_ns=now + 12 * SECOND_NS)
    graph.until(lambda: is_answered(stamp), 'tracks after an image without a stamp')
    assert not is_answered(0)
    assert failed == 0
    for message in tracks:
        ids = [detection.id for detection in message.detections]
        assert len(set(ids)) == len(ids)


def test_bag_in_a_loop_keeps_its_stamps_growing(graph, tmp_path):
    with BagWriter(tmp_path / 'bag') as bag:
        for i in range(5):
            stamp = SECOND_NS + i * SECOND_NS // 50
            message = message_of(stamp, 'bgr8', 48, 64)
            bag.write('/image_raw', 'sensor_msgs/msg/Image', stamp, serialize_message(message))
    messages = graph.collect(Image, 'image_raw', image_qos(50, reliable=True))
    graph.add(
        SourceNode,
        source=str(tmp_path / 'bag'),
        loop=True,
        stamps='recorded',
        wait_for_subscriber=True,
    )
    graph.until(lambda: len(messages) >= 13, 'two rounds and a half')
    stamps = [stamp_ns(message.header) for message in messages]
    assert stamps == sorted(set(stamps))
    assert stamps[:5] == [SECOND_NS + i * SECOND_NS // 50 for i in range(5)]


class Camera:
    """A network camera that can be unplugged; it comes back on the same port."""

    def __init__(self):
        self._plugged = threading.Event()
        self._port = 0

    def plug_in(self):
        self._plugged = plugged = threading.Event()
        jpeg = cv2.imencode('.jpg', noise(48, 64, 3))[1].tobytes()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                """Quiet."""

            def do_GET(self):
                self.send_response(200)
                self.send_header('Content-Type', 'multipart/x-mixed-replace; boundary=frame')
                self.end_headers()
                head = b'--frame\r\nContent-Type: image/jpeg\r\n'
                head += f'Content-Length: {len(jpeg)}\r\n\r\n'.encode()
                try:
                    while not plugged.wait(0.02):
                        self.wfile.write(head + jpeg + b'\r\n')
                except OSError:
                    pass  # the reader has gone

        self._server = ThreadingHTTPServer(('127.0.0.1', self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return f'http://127.0.0.1:{self._port}/stream'

    def unplug(self):
        self._plugged.set()
        self._server.shutdown()
        self._server.server_close()


def test_camera_that_is_unplugged_is_said_and_comes_back(graph):
    camera = Camera()
    url = camera.plug_in()
    messages = graph.collect(Image, 'image_raw', image_qos(50, reliable=True))
    try:
        graph.add(SourceNode, source=url, timeout_s=2.0)
        for _ in range(2):
            graph.until(lambda: len(messages) >= 3, 'images')
            camera.unplug()
            graph.until(
                lambda: graph.levels.get('source', (b'',))[0] == DiagnosticStatus.ERROR,
                'an error of the source',
            )
            messages.clear()
            camera.plug_in()
        graph.until(lambda: len(messages) >= 3, 'images')
        graph.until(
            lambda: graph.levels['source'][0] == DiagnosticStatus.OK, 'that all is well again'
        )
    finally:
        camera.unplug()


def test_full_disk_ends_the_demo_with_a_line_and_no_half_written_recording(
    small_disk, demo_clip, start_demo
):
    process = start_demo('--source', demo_clip, '--out', small_disk / 'out', '--port', '0')
    output, _ = process.communicate(timeout=60.0)
    assert process.returncode == 1, output
    assert 'No space left on device'.lower() in output.lower()
    assert 'Traceback' not in output
    left = {path.name for path in (small_disk / 'out').iterdir()}
    assert left <= {'perception.log', 'tracks.txt', 'report.json'}


@pytest.mark.parametrize('kind', ['bag', 'video'])
def test_full_disk_is_one_clear_error_of_the_writer(small_disk, kind):
    path = small_disk / {'bag': 'bag', 'video': 'video.mp4'}[kind]

    def record():
        if kind == 'bag':
            with BagWriter(path) as bag:
                for stamp in range(200):
                    bag.write('/image_raw', 'sensor_msgs/msg/Image', stamp, bytes(100_000))
        else:
            with VideoWriter(path, 10.0) as video:
                for i in range(200):
                    rng = np.random.default_rng(i)
                    video.write(rng.integers(0, 255, (240, 320, 3), np.uint8))

    with pytest.raises(MediaError, match=r'(?i)no space left'):
        record()
    assert list(small_disk.iterdir()) == []
