"""The thread of the web server, by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from edge_perception.api import Server, listen


def test_server_that_is_stopped_before_it_serves_does_not_serve(
    until: Callable[..., Any],
) -> None:
    """As when Ctrl-C comes while the nodes start."""
    making, made = threading.Event(), threading.Event()

    def make_gateway() -> Any:
        making.set()
        made.wait(10.0)
        return SimpleNamespace(app=None, close=lambda: None)

    server = Server(make_gateway, listen('127.0.0.1', 0))
    starter = threading.Thread(target=server.start)
    starter.start()
    assert making.wait(10.0)
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    until(lambda: server._stopping, 'the stop')
    made.set()
    stopper.join()
    starter.join()
    assert not server._thread.is_alive()


def test_server_that_was_not_started_can_be_stopped() -> None:
    Server(lambda: None, listen('127.0.0.1', 0)).stop()
