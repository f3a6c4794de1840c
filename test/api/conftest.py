"""A real gateway in a process of its own, with the default model, and clients for it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_perception.ros.programs import node_command

OPTIONS = {
    'port': 0,
    'nodes': "''",
    'max_requests': 4,
    'request_timeout_s': 6.0,
    'max_body_mib': 4.0,
    'max_megapixels': 20.0,
}


@dataclass
class RunningGateway:
    """A gateway that listens.

    Attributes:
        url: without a slash at its end.
        process: of the gateway.
    """

    url: str
    process: subprocess.Popen[str]

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix('http://').split(':')
        return host, int(port)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30.0, trust_env=False, **options)


@pytest.fixture(scope='session')
def start_node(new_domain_id: Callable[[], int]) -> Callable[..., subprocess.Popen[str]]:
    """Starts a node in a domain of its own; its output goes to `log`."""

    def start_node(
        name: str, log: Path, parameters: Mapping[str, Any], **environment: str
    ) -> subprocess.Popen[str]:
        command = node_command(name, [f'{key}:={value}' for key, value in parameters.items()])
        with log.open('w') as output:
            return subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                env={
                    **os.environ,
                    'ROS_DOMAIN_ID': str(new_domain_id()),
                    'PYTHONUNBUFFERED': '1',
                    **environment,
                },
            )

    return start_node


@pytest.fixture(scope='session')
def start_gateway(
    start_node: Callable[..., subprocess.Popen[str]],
) -> Callable[..., subprocess.Popen[str]]:
    """Starts a gateway that may fail to; the test ends it."""

    def start_gateway(
        log: Path, *, environment: Mapping[str, str] | None = None, **parameters: Any
    ) -> subprocess.Popen[str]:
        return start_node('gateway', log, {**OPTIONS, **parameters}, **(environment or {}))

    return start_gateway


@pytest.fixture(scope='session')
def until() -> Callable[..., Any]:
    """Waits until a condition holds, and returns its value."""

    def wait(condition: Callable[[], Any], what: str, deadline_s: float = 60.0) -> Any:
        end_s = time.monotonic() + deadline_s
        pause = threading.Event()
        while not (value := condition()):
            if time.monotonic() > end_s:
                pytest.fail(f'waited {deadline_s:.0f} s for {what}')
            pause.wait(0.02)
        return value

    return wait


def _url_in(log: Path, process: subprocess.Popen[str], until: Callable[..., Any]) -> str:
    def url() -> str | None:
        assert process.poll() is None, log.read_text()
        found = re.search(r'listening on (http://\S+)', log.read_text())
        return found[1] if found else None

    return str(until(url, 'the gateway'))


@pytest.fixture(scope='package')
def running(
    tmp_path_factory: pytest.TempPathFactory,
    start_gateway: Callable[..., subprocess.Popen[str]],
    until: Callable[..., Any],
) -> Iterator[Callable[..., RunningGateway]]:
    """Starts gateways; they end with these tests."""
    started: list[subprocess.Popen[str]] = []

    def start(**options: Any) -> RunningGateway:
        log = tmp_path_factory.mktemp('gateway') / 'log.txt'
        process = start_gateway(log, **options)
        started.append(process)
        return RunningGateway(_url_in(log, process, until), process)

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in started:
        process.wait(20.0)


@pytest.fixture(scope='package')
def gateway(running: Callable[..., RunningGateway], until: Callable[..., Any]) -> RunningGateway:
    """A gateway alone, with its own detector, which it loads on the first request."""
    gateway = running()
    picture = cv2.imencode('.png', np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    with gateway.client() as client:
        until(
            lambda: client.post('/detect', files={'file': picture}).status_code == 200,
            'the detector of the gateway',
        )
    return gateway


@pytest.fixture(scope='package')
def http(gateway: RunningGateway) -> Iterator[httpx.Client]:
    """A client of it."""
    with gateway.client() as client:
        yield client


@pytest.fixture(scope='package')
def pipeline_url(
    tmp_path_factory: pytest.TempPathFactory,
    demo_clip: Path,
    start_node: Callable[..., subprocess.Popen[str]],
    until: Callable[..., Any],
) -> Iterator[str]:
    """The gateway of a whole pipeline on the demo clip, once it has numbers to show."""
    log = tmp_path_factory.mktemp('perception') / 'log.txt'
    parameters = {
        'perception:members': 'source,detector,tracker,visualizer,metrics,gateway',
        'source:source': json.dumps(str(demo_clip)),
        'source:loop': 'true',
        'gateway:port': '0',
    }
    process = start_node('perception', log, parameters)
    try:
        url = _url_in(log, process, until)
        with httpx.Client(base_url=url, trust_env=False, timeout=30.0) as client:

            def has_numbers() -> bool:
                metrics = client.get('/metrics').json()
                return metrics['fps'] and metrics['processes'] and metrics['inference_count'] > 2

            until(has_numbers, 'numbers')
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20.0)


@pytest.fixture(scope='session')
def png(people: NDArray[np.uint8]) -> bytes:
    """The picture as PNG, which loses nothing."""
    return cv2.imencode('.png', people)[1].tobytes()
