"""Runs the application on a thread of its own."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edge_perception.api.app import Gateway
from edge_perception.api.errors import GatewayError

MAX_CONNECTIONS = 256
KEEP_ALIVE_S = 5
SHUTDOWN_S = 1.0
HEADERS_WITHIN_S = 10.0
MAX_HEAD_BYTES = 64 * 1024


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address.

    Args:
        host: address or name of this machine.
        port: 0 takes a free one.

    Raises:
        GatewayError: the port is in use, or the address is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise GatewayError(f'cannot listen on {host}: {error.strerror}') from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise GatewayError(
            f'cannot listen on {host}:{port}: {error.strerror}; choose another port'
        ) from error
    return bound


class _Protocol(HttpToolsProtocol):
    """Ends connections that uvicorn would leave open: with endless headers, or with none."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_bytes = 0
        self._deadline = self.loop.call_later(HEADERS_WITHIN_S, self._close_unused)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._in_head = True
        super().data_received(data)
        # Whatever of it was a body is no matter: the head of this request is still open.
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response('The headers are too long.')

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._in_head = False
        super().on_body(body)

    def _close_unused(self) -> None:
        if self.cycle is None:
            self.transport.close()


class Server:
    """uvicorn with an event loop and a thread of its own.

    Args:
        make_gateway: called on the thread; makes the application.
        bound: the socket to listen on, which the server closes.
    """

    def __init__(self, make_gateway: Callable[[], Gateway], bound: socket.socket) -> None:
        self.gateway: Gateway | None = None
        self._make_gateway = make_gateway
        self._socket = bound
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._ready = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name='http', daemon=True)

    def start(self) -> None:
        """Listen; returns when requests are taken."""
        # A client that connects before the loop runs waits in the kernel's queue.
        self._socket.listen(128)
        self._thread.start()
        self._ready.wait(10.0)

    def call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function on the event loop."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def stop(self) -> None:
        """Answer what is being answered, for a short time, and end the thread."""
        self._stopping = True
        if self._server is not None:
            self._server.should_exit = True
        if self.gateway is not None:
            self.call_soon(self.gateway.close)
        if self._thread.ident is not None:
            self._thread.join(SHUTDOWN_S + 2.0)
        self._socket.close()

    def _run(self) -> None:
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._serve())
        finally:
            loop.close()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        gateway = self.gateway = self._make_gateway()
        config = uvicorn.Config(
            gateway.app,
            http=_Protocol,
            ws='none',
            lifespan='off',
            log_config=None,
            log_level='critical',
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=round(SHUTDOWN_S),
        )
        self._server = uvicorn.Server(config)
        self._ready.set()
        if self._stopping:  # before there was a server to tell
            return
        await self._server.serve(sockets=[self._socket])
