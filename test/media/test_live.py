"""Live sources over real sockets: HTTP streams, MPEG-TS over UDP; cameras where there is none."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import cv2
import pytest

from edge_perception.media import MediaError, MediaTimeoutError, open_source

from .makers import gray_frame, level_of, make_video, marks
from .rtsp_server import RtspCamera


@contextmanager
def _serve(handler: object) -> Iterator[str]:
    """An HTTP server on a free port; yields its URL."""
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)  # type: ignore[arg-type]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05})
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _FileHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Quiet."""


class _Camera:
    """A network camera: motion JPEG over HTTP, as IP cameras and ESP32 boards send it."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.hang_up = threading.Event()
        self.sent = 0
        self.advanced = threading.Condition()

    def wait_for(self, count: int) -> None:
        """Wait until `count` further images are on their way."""
        with self.advanced:
            goal = self.sent + count
            assert self.advanced.wait_for(lambda: self.sent >= goal, 20)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header('Content-Type', 'multipart/x-mixed-replace; boundary=frame')
                self.end_headers()
                try:
                    while not camera.hang_up.wait(0.01):
                        if not camera.go_on.is_set():
                            continue
                        jpeg = cv2.imencode('.jpg', gray_frame(level_of(camera.sent)))[1]
                        self.wfile.write(
                            b'--frame\r\nContent-Type: image/jpeg\r\n'
                            + b'Content-Length: %d\r\n\r\n' % len(jpeg)
                            + jpeg.tobytes()
                            + b'\r\n'
                        )
                        with camera.advanced:
                            camera.sent += 1
                            camera.advanced.notify_all()
                except OSError:
                    pass  # the viewer has gone

        return Handler


@pytest.fixture
def camera() -> Iterator[tuple[_Camera, str]]:
    """A running network camera and its URL."""
    device = _Camera()
    with _serve(device.handler()) as url:
        yield device, f'{url}/stream'
        device.hang_up.set()


def test_motion_jpeg_delivers_the_newest(camera: tuple[_Camera, str]) -> None:
    """Who is slow gets the newest frame, stamped when it came; overtaken ones are counted."""
    device, url = camera
    before_ns = time.time_ns()
    with open_source(url, frame_id='gate') as source:
        assert source.is_live
        assert source.frame_count is None
        first = next(source)
        assert first.frame_id == 'gate'
        assert first.image.shape == (48, 64, 3)
        assert before_ns < first.stamp_ns <= time.time_ns()
        device.wait_for(20)
        second = next(source)
    (older,), (newer,) = marks([first.image]), marks([second.image])
    assert second.stamp_ns > first.stamp_ns
    assert (newer - older) % 25 > 5
    assert source.dropped > 5


def test_stalled_stream_is_noticed(camera: tuple[_Camera, str]) -> None:
    """Silence for longer than `timeout_s` is an error that names the source and the time."""
    device, url = camera
    with open_source(url, timeout_s=0.5) as source:
        next(source)
        device.go_on.clear()
        with pytest.raises(MediaTimeoutError, match=r'for 0\.5 s') as raised:
            for _ in source:
                pass
        assert url in str(raised.value)


def test_end_of_a_live_stream_is_an_error(camera: tuple[_Camera, str]) -> None:
    """A camera that hangs up has not come to its end: the caller shall reconnect."""
    device, url = camera
    with open_source(url) as source:
        next(source)
        device.hang_up.set()
        with pytest.raises(MediaError, match=r'has ended|broke off'):
            for _ in source:
                pass
    device.hang_up.clear()
    with open_source(url) as source:
        assert next(source).image.shape == (48, 64, 3)


def test_closing_ends_the_wait(camera: tuple[_Camera, str]) -> None:
    """A reader that waits for the next frame is let go when the source is closed."""
    device, url = camera
    source = open_source(url, timeout_s=60)
    next(source)
    device.go_on.clear()
    left: list[int] = []

    def read() -> None:
        left.append(sum(1 for _ in source))

    thread = threading.Thread(target=read)
    thread.start()
    source.close()
    thread.join(10)
    assert not thread.is_alive()
    assert left
    source.close()


def test_recording_on_a_server_is_no_live_stream(tmp_path: Path) -> None:
    """A file behind HTTP keeps its own time, has a count and can loop."""
    make_video(tmp_path / 'clip.mp4', range(0, 400, 40))
    with (
        _serve(partial(_FileHandler, directory=str(tmp_path))) as url,
        open_source(f'{url}/clip.mp4', loop=True) as source,
    ):
        assert not source.is_live
        assert source.frame_count == 10
        frames = list(itertools.islice(source, 15))
    assert marks([frame.image for frame in frames]) == [*range(10), *range(5)]
    assert frames[14].stamp_ns == 14 * 40_000_000


def test_missing_page_and_silent_server(tmp_path: Path) -> None:
    """What the network answers, or that it does not, stands in the error."""
    with (
        _serve(partial(_FileHandler, directory=str(tmp_path))) as url,
        pytest.raises(MediaError, match=r'/nothing\.mp4: cannot be opened .*404'),
    ):
        open_source(f'{url}/nothing.mp4')
    with socket.create_server(('127.0.0.1', 0)) as silent:
        url = f'http://127.0.0.1:{silent.getsockname()[1]}/stream'
        with pytest.raises(MediaTimeoutError, match=r'no answer within 0\.3 s'):
            open_source(url, timeout_s=0.3)


def test_mpeg_ts_over_udp() -> None:
    """What drones and encoders send: H.264 in MPEG-TS, which begins in mid-stream."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    stop = threading.Event()

    def send() -> None:
        with av.open(f'udp://127.0.0.1:{port}?pkt_size=1316', 'w', format='mpegts') as output:
            stream = output.add_stream('libx264', rate=50)
            stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
            stream.options = {'tune': 'zerolatency', 'g': '10'}
            for index in itertools.count():
                if stop.wait(0.02):
                    break
                picture = av.VideoFrame.from_ndarray(gray_frame(90), format='bgr24')
                picture.pts, picture.time_base = index, Fraction(1, 50)
                output.mux(stream.encode(picture))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with open_source(f'udp://127.0.0.1:{port}', timeout_s=20) as source:
            assert source.is_live
            stamps_ns = []
            for frame in itertools.islice(source, 20):
                assert abs(float(frame.image.mean()) - 90) < 3
                stamps_ns.append(frame.stamp_ns)
        assert stamps_ns == sorted(set(stamps_ns))
    finally:
        stop.set()
        sender.join(10)


def test_rtsp() -> None:
    """The protocol of IP cameras: over TCP, live, a stall noticed, opened again."""
    with RtspCamera() as camera:
        with open_source(camera.url, timeout_s=5, frame_id='gate') as source:
            assert source.is_live
            for frame in itertools.islice(source, 10):
                assert abs(float(frame.image.mean()) - 90) < 3
                assert frame.frame_id == 'gate'
            camera.go_on.clear()
            with pytest.raises(MediaTimeoutError, match=f'{camera.url}.* for 5 s'):
                for _ in source:
                    pass
        camera.go_on.set()
        with open_source(camera.url, timeout_s=10) as source:
            assert next(source).image.shape == (48, 64, 3)
    assert camera.methods.count('PLAY') == 2


def test_rate_of_a_stream_cannot_be_chosen(camera: tuple[_Camera, str]) -> None:
    """A wish that cannot be fulfilled is refused, not forgotten."""
    with pytest.raises(MediaError, match='its rate cannot be chosen'):
        open_source(camera[1], rate_hz=5)


@pytest.mark.parametrize(
    ('uri', 'message'),
    [
        ('97', '/dev/video97: no such camera; found: '),
        ('/dev/video97', '/dev/video97: no such camera; found: '),
        ('/dev/null', '/dev/null: in use by another program, or not a camera'),
    ],
)
def test_camera_that_is_not_there(uri: str, message: str) -> None:
    """By number or by path: the error says which cameras there are."""
    with pytest.raises(MediaError, match=message):
        open_source(uri)


@pytest.mark.parametrize('sink', ['', ' ! videoconvert ! video/x-raw,format=BGR ! appsink'])
def test_pipeline(sink: str) -> None:
    """A pipeline delivers BGR, without an appsink too; OpenCV from pip says that it cannot."""
    pipeline = f'videotestsrc ! video/x-raw,width=64,height=48{sink}'
    if 'GStreamer:                   YES' not in cv2.getBuildInformation():
        with pytest.raises(MediaError, match='built without GStreamer'):
            open_source(pipeline)
        return
    with open_source(pipeline) as source:
        assert source.is_live
        assert next(source).image.shape == (48, 64, 3)
    gray = 'videotestsrc ! video/x-raw,format=GRAY8,width=64,height=48 ! appsink'
    with open_source(gray) as source, pytest.raises(MediaError, match=r'not BGR; a pipeline must'):
        next(source)


def test_password_stays_out_of_the_log(camera: tuple[_Camera, str]) -> None:
    """URLs of cameras carry passwords; descriptions and errors do not."""
    url = camera[1].replace('://', '://admin:secret@')
    with open_source(url) as source:
        assert '://admin:***@127.0.0.1' in source.description
    with pytest.raises(MediaError, match=r'admin:\*\*\*@') as raised:
        open_source('rtsp://admin:secret@127.0.0.1:1/x')
    assert 'secret' not in str(raised.value)


def test_unknown_protocol() -> None:
    """A URL that nothing can read is named."""
    with pytest.raises(MediaError, match='cannot be opened as a video: protocol not found'):
        open_source('warp://camera')
