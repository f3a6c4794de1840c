"""Real nodes on the real middleware: one ROS domain a test."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not there: run make setup')

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile

from edge_perception import media
from edge_perception.media.video import VideoWriter
from edge_perception.ros.images import frame_to_image
from edge_perception.ros.lifecycle import ManagedNode
from edge_perception.ros.programs import end_process
from edge_perception.ros.qos import RESULTS_QOS, image_qos
from edge_perception.ros.release import make_executor
from edge_perception.ros.transport import apply_transport_defaults, transport_environment
from edge_perception.types import Frame

DEADLINE_S = 30.0


class Graph:
    """A ROS graph of its own, with a node that tests look through."""

    def __init__(self, domain_id: int) -> None:
        self.domain_id = domain_id
        self.context = Context()
        rclpy.init(args=[], context=self.context, domain_id=domain_id)
        self.node = Node('observer', context=self.context)
        self.executor = make_executor(self.context)
        self.executor.add_node(self.node)
        self.nodes: list[ManagedNode] = []
        self.processes: list[subprocess.Popen[str]] = []
        self.diagnostics: dict[str, dict[str, str]] = {}
        self.levels: dict[str, tuple[bytes, str]] = {}
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 50)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            name = status.name.split(':')[0]
            self.diagnostics[name] = {item.key: item.value for item in status.values}
            self.levels[name] = (status.level, status.message)

    def add(self, factory: Callable[..., ManagedNode], start: bool = True, **options: Any) -> Any:
        """Create a node in this process; `links` and parameters by name."""
        links = options.pop('links', None)
        overrides = [Parameter(name, value=value) for name, value in options.items()]
        node = factory(links=links, context=self.context, parameter_overrides=overrides)
        self.nodes.append(node)
        self.executor.add_node(node)
        if start:
            node.start()
        return node

    def run(self, name: str, *arguments: str, **parameters: Any) -> subprocess.Popen[str]:
        """Start an executable of the package as a process, with ROS parameters by name."""
        return self.start('-m', f'edge_perception.nodes.{name}', *arguments, **parameters)

    def start(self, *program: str, **parameters: Any) -> subprocess.Popen[str]:
        """Start a program of Python as a process, with ROS parameters by name."""
        command = [sys.executable, *program, '--ros-args']
        for key, value in parameters.items():
            command += ['-p', f'{key.replace("__", ":")}:={value}']
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                **transport_environment(),
                'ROS_DOMAIN_ID': str(self.domain_id),
                'PYTHONUNBUFFERED': '1',
            },
        )
        self.processes.append(process)
        return process

    def collect(self, kind: type, topic: str, qos: QoSProfile = RESULTS_QOS) -> list[Any]:
        """The messages that come in on `topic`, filled while the graph spins."""
        messages: list[Any] = []
        self.node.create_subscription(kind, topic, messages.append, qos)
        return messages

    def until(
        self, condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S
    ) -> None:
        """Spin until `condition` holds; fail with `what` was waited for."""
        end_s = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > end_s:
                pytest.fail(f'waited {deadline_s:.0f} s for {what}; last: {self.levels}')
            for process in self.processes:
                if process.poll() not in (None, 0):
                    pytest.fail(f'{process.args} ended: {process.stdout.read()}')
            self.executor.spin_once(timeout_sec=0.05)

    def spin_for(self, duration_s: float) -> None:
        """Spin for a time, for what must NOT happen; never to wait for what must."""
        end_s = time.monotonic() + duration_s
        while (left_s := end_s - time.monotonic()) > 0:
            self.executor.spin_once(timeout_sec=left_s)

    def close(self) -> None:
        """End processes and nodes."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self.processes:
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        for node in (*self.nodes, self.node):
            self.executor.remove_node(node)
            node.destroy_node()
        self.executor.shutdown()
        self.context.try_shutdown()


@pytest.fixture(scope='session', autouse=True)
def transport() -> None:
    """The transport that every executable of the package applies."""
    apply_transport_defaults()


@pytest.fixture
def graph(new_domain_id: Callable[[], int]) -> Iterator[Graph]:
    """A graph that no other test sees."""
    graph = Graph(new_domain_id())
    try:
        yield graph
    finally:
        graph.close()


@pytest.fixture(scope='module')
def module_graph(new_domain_id: Callable[[], int]) -> Iterator[Graph]:
    """A graph for all tests of a module that ask for it."""
    graph = Graph(new_domain_id())
    try:
        yield graph
    finally:
        graph.close()


class ImagePublisher:
    """Publishes small images whose stamps are known."""

    def __init__(
        self, graph: Graph, size_hw: tuple[int, int] = (240, 320), topic: str = 'image_raw'
    ) -> None:
        from sensor_msgs.msg import Image

        self._publisher = graph.node.create_publisher(Image, topic, image_qos(5, reliable=True))
        self._graph = graph
        self.image = np.random.default_rng(0).integers(0, 255, (*size_hw, 3), np.uint8)
        self.stamps_ns: list[int] = []
        self._due_s = 0.0

    def wait_for_subscribers(self, count: int = 1) -> None:
        """Until `count` subscriptions are matched."""
        self._graph.until(
            lambda: self._publisher.get_subscription_count() >= count, 'image subscribers'
        )

    def send(self, stamp_ns: int | None = None, image: Any = None) -> int:
        """Publish one image; returns its stamp."""
        stamp_ns = time.time_ns() if stamp_ns is None else stamp_ns
        self.stamps_ns.append(stamp_ns)
        self.send_message(
            frame_to_image(Frame(self.image if image is None else image, stamp_ns, 'camera'))
        )
        return stamp_ns

    def is_due(self, period_s: float = 0.05) -> bool:
        """Whether an image is to be sent, as a camera would: yes once in each period."""
        if time.monotonic() < self._due_s:
            return False
        self._due_s = time.monotonic() + period_s
        return True

    def send_message(self, message: Any) -> None:
        """Publish any image message."""
        self._publisher.publish(message)


@pytest.fixture(scope='session')
def image_publisher() -> type[ImagePublisher]:
    """For tests that publish on several topics."""
    return ImagePublisher


@pytest.fixture
def images(graph: Graph) -> ImagePublisher:
    """An image publisher on image_raw."""
    return ImagePublisher(graph)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of this process say how they are ten times a second: no test waits for seconds."""
    monkeypatch.setattr('edge_perception.ros.lifecycle.DIAGNOSTICS_PERIOD_S', 0.1)


@pytest.fixture
def demo_beginning(tmp_path: Path, demo_clip: Path) -> Callable[[int], Path]:
    """Makes a video of the first frames of the demo clip."""

    def demo_beginning(frames: int) -> Path:
        path = tmp_path / f'{frames}.mp4'
        with media.open_source(demo_clip) as source, VideoWriter(path, 10.0) as writer:
            for frame in itertools.islice(source, frames):
                writer.write(frame.image)
        return path

    return demo_beginning


@pytest.fixture
def start_demo(new_domain_id: Callable[[], int]) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the demo with arguments; one that still runs ends with the test."""
    processes: list[subprocess.Popen[str]] = []

    def start_demo(*arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, '-um', 'edge_perception.nodes.demo', *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # So wide that no line is broken.
            env={**os.environ, 'ROS_DOMAIN_ID': str(new_domain_id()), 'COLUMNS': '200'},
        )
        processes.append(process)
        return process

    yield start_demo
    for process in processes:
        end_process(process)
        process.stdout.close()
