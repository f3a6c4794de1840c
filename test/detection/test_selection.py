"""Which backend `auto` takes on the CPU, shown with backends whose work and delays are known."""

from __future__ import annotations

import select
import time

import numpy as np
import pytest

from edge_perception.detection import selection
from edge_perception.detection.backends import Backend, TensorSpec


def stand_in(backend_name: str, *, work_s: float, delay_s: float = 0.0) -> type[Backend]:
    """A backend that computes for so long, and is held up for so long in each run."""

    class StandIn(Backend):
        name = backend_name
        suffixes = ('.onnx',)
        device = 'cpu'
        metadata: dict[str, str] = {}  # noqa: RUF012
        input_spec = TensorSpec('images', np.dtype(np.float32), (1, 3, 64, 64))
        runs = 0
        closed = False

        def activate(self):
            pass

        def infer(self, blob):
            type(self).runs += 1
            end_s = time.thread_time() + work_s
            while time.thread_time() < end_s:
                pass
            select.select([], [], [], delay_s)
            return [np.zeros((1, 5, 1), np.float32)]

        def close(self):
            self.closed = True

    return StandIn


def choose(monkeypatch, *backends):
    monkeypatch.setattr(selection, 'backends_for_file', lambda path: list(backends))
    return selection.activate_backend('auto', 'model.onnx')


@pytest.mark.parametrize('faster', [0, 1])
def test_the_faster_one_is_taken_and_the_other_freed(monkeypatch, faster):
    backends = [stand_in(name, work_s=4e-3 / (1 + (i == faster))) for i, name in enumerate('ab')]
    chosen, reason = choose(monkeypatch, *backends)
    assert chosen.name == 'ab'[faster]
    assert not chosen.closed
    assert reason.startswith(f'{chosen.name} on cpu: the fastest here, ')
    assert backends[0].runs == backends[1].runs


def test_equals_go_by_preference(monkeypatch):
    """By 1 %, where 3 % count as nothing."""
    chosen, _ = choose(monkeypatch, stand_in('a', work_s=5.05e-3), stand_in('b', work_s=5e-3))
    assert chosen.name == 'a'


def test_what_was_held_up_is_measured_on(monkeypatch):
    """Every other run of `a` is held up: its others count."""
    slow = stand_in('b', work_s=4e-3)
    held = stand_in('a', work_s=2e-3)
    infer = held.infer

    def sometimes(self, blob):
        select.select([], [], [], 8e-3 * (self.runs % 2))
        return infer(self, blob)

    monkeypatch.setattr(held, 'infer', sometimes)
    chosen, _ = choose(monkeypatch, slow, held)
    assert chosen.name == 'a'


def test_busy_machine_is_told(monkeypatch):
    backends = [stand_in(name, work_s=1e-3, delay_s=8e-3) for name in 'ab']
    _, reason = choose(monkeypatch, *backends)
    assert reason.endswith('(at best: the machine is busy)')


def test_long_inferences_are_few(monkeypatch):
    """The comparison may take a second, not a multiple of it."""
    backends = [stand_in('a', work_s=1e-3, delay_s=0.3), stand_in('b', work_s=1e-3, delay_s=0.5)]
    chosen, _ = choose(monkeypatch, *backends)
    assert chosen.name == 'a'
    assert backends[0].runs == 1 + selection.LEAST_ROUNDS
