"""Real nodes that things happen to: the graph of test/graph, and processes that are killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location('graph', HERE.parent / 'graph' / 'conftest.py')
assert _spec is not None and _spec.loader is not None
_graph = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_graph)

Graph = _graph.Graph
ImagePublisher = _graph.ImagePublisher
transport = _graph.transport
graph = _graph.graph
images = _graph.images
start_demo = _graph.start_demo

END_WITHIN_S = 2.0


@pytest.fixture
def end():
    """Signals a process and checks what every end must be: soon, 0, quiet, nothing left."""
    return _end


def _end(process: subprocess.Popen[str], *signals: int) -> str:
    children = psutil.Process(process.pid).children(recursive=True)
    began_s = time.monotonic()
    for signum in signals:
        process.send_signal(signum)
    output, _ = process.communicate(timeout=30.0)
    took_s = time.monotonic() - began_s
    assert process.returncode == 0, output
    assert 'Traceback' not in output
    assert 'terminate called' not in output
    assert took_s < END_WITHIN_S * slowness(), f'{took_s:.1f} s\n{output}'
    _gone, alive = psutil.wait_procs(children, timeout=END_WITHIN_S)
    assert not alive, f'left behind: {alive}'
    return output


def slowness() -> float:
    """How much longer things take than on an idle machine: others may be using it."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.fixture
def kill(graph):
    """Ends a process of the graph as the kernel does when memory is short."""

    def kill(process: subprocess.Popen[str]) -> None:
        graph.processes.remove(process)
        process.send_signal(signal.SIGKILL)
        assert process.wait(10.0) == -signal.SIGKILL
        process.stdout.close()

    return kill


@pytest.fixture
def run_faulty(graph):
    """Starts a detector with the backend of this folder, as a process."""
    program = str(HERE / 'faulty_detector.py')
    return partial(graph.start, program, model_path=HERE / 'model.faulty')


@pytest.fixture
def small_disk(disk_of: Callable[[str], Path]) -> Path:
    """A folder on a disk of 1 MiB: a recording begins and does not end."""
    return disk_of('1m')
