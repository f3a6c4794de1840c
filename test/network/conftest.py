"""Machines of a network on this one; see model_tools/network_lab.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip('rclpy', reason='rclpy is not there: run make setup')

from network_lab import Lab, missing

MACHINES = ('camera', 'robot', 'desk')


@pytest.fixture(scope='module')
def lab() -> Iterator[Lab]:
    """Camera, robot and desk on a wire of 1 Gbit/s that takes 2 ms and loses 1 % of the frames."""
    if lacks := missing():
        pytest.skip(f'machines of a network need {lacks}')
    with Lab(MACHINES) as lab:
        yield lab


@pytest.fixture(autouse=True)
def end_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """The programs of a test end with it; those of a module's pipeline are in a lab of its own."""
    yield
    if 'lab' in request.fixturenames:
        request.getfixturevalue('lab').end_programs()
