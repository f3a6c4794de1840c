"""The main function of every executable: transport, executor, signals, exit status."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

import rclpy
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.signals import SignalHandlerOptions

from edge_perception.ros.lifecycle import ManagedNode, StartError
from edge_perception.ros.log import EventLogger, apply_log_format
from edge_perception.ros.release import make_executor
from edge_perception.ros.transport import apply_transport_defaults, remove_abandoned_shared_memory
from edge_perception.types import EdgePerceptionError

# What rcl and the middleware refuse: a keystore that is not there, security that is not built in.
RCLError = rclpy_implementation.RCLError


class _Stopped(BaseException):
    """A signal came while nodes were starting."""


def run(
    create_nodes: Callable[[], Sequence[ManagedNode]], args: Sequence[str] | None = None
) -> int:
    """Run nodes until SIGINT or SIGTERM.

    Args:
        create_nodes: makes the nodes, once the middleware is up.
        args: command line; sys.argv by default.

    Returns:
        0 after a signal, 1 when a node could not start.
    """
    as_json = apply_log_format(sys.argv if args is None else args)
    try:
        apply_transport_defaults()
        remove_abandoned_shared_memory()
        # Own handlers: rclpy's would shut the context down under nodes that still clean up, and a
        # second Ctrl-C would end the process half-way.
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except (EdgePerceptionError, RCLError) as error:
        _log_failure(error, as_json)
        return 1
    stopping = False
    starting = True

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopping, starting
        stopping = True
        if starting:
            starting = False  # a second one must not end the cleaning up
            raise _Stopped

    nodes: Sequence[ManagedNode] = ()
    executor = make_executor()
    status = 0
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, stop)
        nodes = create_nodes()
        for node in nodes:
            executor.add_node(node)
        for node in nodes:
            if node.parameters.autostart:
                node.start()
        starting = False
        # What is there now stays. The collector would look through it again and again while images
        # wait: 80,000 objects, 60 ms.
        gc.collect()
        gc.freeze()
        while not stopping and rclpy.ok():
            # A loop of short turns: EventsExecutor.spin() does not return, and a signal handler
            # of Python runs only between turns.
            executor.spin_once(timeout_sec=0.2)
    except _Stopped:
        pass
    except (EdgePerceptionError, RCLError) as error:
        if not isinstance(error, StartError):  # whose reason the node has logged
            _log_failure(error, as_json)
        status = 1
    finally:
        starting = False
        for node in reversed(nodes):
            executor.remove_node(node)
            node.destroy_node()
        executor.shutdown()
        rclpy.try_shutdown()
    return status


def _log_failure(error: Exception, as_json: bool) -> None:
    logger = EventLogger('edge_perception', 'edge_perception', as_json=as_json)
    logger.error(' '.join(str(error).split()), event='start_failed')


def leave(status: int) -> NoReturn:
    """End the process, whatever still runs in it.

    The interpreter waits for threads that load a model, and takes what they work with from those
    that hang in a library. Nodes and middleware are gone by now: there is nothing to wait for.
    """
    if threading.active_count() == 1:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(*factories: Callable[..., ManagedNode], **kwargs: Any) -> None:
    """Entry point of an executable that runs one node of each factory."""
    leave(run(lambda: [factory(**kwargs) for factory in factories]))
