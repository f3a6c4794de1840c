"""A server for one RTSP viewer at a time (RFC 2326), H.264 over RTP inside the TCP connection."""

from __future__ import annotations

import itertools
import socket
import socketserver
import threading
from fractions import Fraction

import av
import numpy as np

SDP = (
    'v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n'
    'm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n'
    'a=fmtp:96 packetization-mode=1\r\na=control:track0\r\n'
)


class RtspCamera:
    """Sends gray images of 64x48 at 50 Hz to whoever plays `url`; a context manager."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.methods: list[str] = []
        self._stop = threading.Event()
        camera = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                camera._converse(self)

        self._server = socketserver.ThreadingTCPServer(('127.0.0.1', 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={'poll_interval': 0.05}
        )
        self.url = f'rtsp://127.0.0.1:{self._server.server_address[1]}/live'

    def __enter__(self) -> RtspCamera:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _converse(self, handler: socketserver.StreamRequestHandler) -> None:
        while request := handler.rfile.readline().decode('ascii', 'replace').split():
            headers = {}
            while line := handler.rfile.readline().decode('ascii').strip():
                name, _, value = line.partition(':')
                headers[name.lower()] = value.strip()
            method = request[0]
            self.methods.append(method)
            if method == 'SETUP' and 'TCP' not in headers['transport']:
                status = '461 Unsupported Transport'
                handler.wfile.write(
                    f'RTSP/1.0 {status}\r\nCSeq: {headers["cseq"]}\r\n\r\n'.encode()
                )
                continue
            body = SDP if method == 'DESCRIBE' else ''
            extra = {
                'OPTIONS': 'Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n',
                'DESCRIBE': f'Content-Base: {self.url}/\r\nContent-Type: application/sdp\r\n',
                'SETUP': 'Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n',
            }.get(method, '')
            handler.wfile.write(
                f'RTSP/1.0 200 OK\r\nCSeq: {headers["cseq"]}\r\nSession: 1\r\n{extra}'
                f'Content-Length: {len(body)}\r\n\r\n{body}'.encode()
            )
            if method == 'PLAY':
                self._play(handler)
                return

    def _play(self, handler: socketserver.StreamRequestHandler) -> None:
        """Send images until the viewer leaves; a muxer makes RTP packets and sends them here."""
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control,
        ):
            receiver.bind(('127.0.0.1', 0))
            receiver.setblocking(False)
            control.bind(('127.0.0.1', 0))
            ports = f'{receiver.getsockname()[1]}?rtcpport={control.getsockname()[1]}'
            with av.open(f'rtp://127.0.0.1:{ports}', 'w', format='rtp') as output:
                stream = output.add_stream('libx264', rate=50)
                stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
                stream.options = {'tune': 'zerolatency', 'g': '10'}
                for index in itertools.count():
                    if self._stop.wait(0.02):
                        return
                    if not self.go_on.is_set():
                        continue
                    picture = av.VideoFrame.from_ndarray(
                        np.full((48, 64, 3), 90, np.uint8), format='bgr24'
                    )
                    picture.pts, picture.time_base = index, Fraction(1, 50)
                    output.mux(stream.encode(picture))
                    try:
                        while True:
                            packet = receiver.recv(65536)
                            framing = b'$\0' + len(packet).to_bytes(2, 'big')
                            handler.wfile.write(framing + packet)
                    except BlockingIOError:
                        pass
                    except OSError:
                        return  # the viewer has gone
