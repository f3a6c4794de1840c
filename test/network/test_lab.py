"""The machines are apart, and the wire between them does what it is told."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from network_lab import Lab, Link, missing

ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(('', 5000))
print('ready', flush=True)
while True:
    data, sender = server.recvfrom(65536)
    server.sendto(data, sender)
"""

# Round trips one after the other, so that each is timed alone. Prints those lost and the median
# in milliseconds.
CALL = """
import socket, statistics, sys, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(0.1)
lost, times_ms = 0, []
for number in range(int(sys.argv[2])):
    data = str(number).encode().ljust(1000)
    start = time.perf_counter()
    client.sendto(data, (sys.argv[1], 5000))
    try:
        while client.recv(2000) != data:
            pass
        times_ms.append((time.perf_counter() - start) * 1e3)
    except TimeoutError:
        lost += 1
print(lost, statistics.median(times_ms))
"""


@pytest.fixture(autouse=True)
def possible() -> None:
    """Skip where machines cannot be made."""
    if lacks := missing():
        pytest.skip(f'machines of a network need {lacks}')


def call(lab: Lab, count: int) -> tuple[int, float]:
    """Round trips from a to b: how many were lost, and how long one takes in milliseconds."""
    server = lab.run('b', [sys.executable, '-c', ECHO])
    assert server.stdout.readline() == 'ready\n'
    client = lab.run('a', [sys.executable, '-c', CALL, lab.addresses['b'], str(count)])
    lost, median_ms = client.communicate(timeout=60.0)[0].split()
    return int(lost), float(median_ms)


def test_a_whole_wire_only_takes_its_time() -> None:
    with Lab(['a', 'b'], Link(delay_ms=5.0, loss_percent=0.0)) as lab:
        lost, median_ms = call(lab, 100)
        assert lost == 0
        assert median_ms >= 10.0
        counts = lab.close()
    assert counts['lost'] == 0
    assert counts['bytes'] > 2 * 100 * 1000


def test_a_lossy_wire_loses_what_it_is_told_to() -> None:
    with Lab(['a', 'b'], Link(delay_ms=0.0, loss_percent=20.0)) as lab:
        lost, _ = call(lab, 100)
        counts = lab.close()
    # Both ways must be passed: 36 % of the round trips. 15 to 60 is over 4 standard deviations.
    assert 15 <= lost <= 60
    assert 0.1 < counts['lost'] / counts['frames'] < 0.3


def test_a_slow_wire_takes_long_for_many_bytes() -> None:
    with Lab(['a', 'b'], Link(rate_mbit=1.0, delay_ms=0.0, loss_percent=0.0)) as lab:
        _, median_ms = call(lab, 10)
    assert median_ms >= 16.0  # 1000 bytes at 1 Mbit/s are 8 ms, and they come back


def test_machines_share_neither_memory_nor_network_nor_name() -> None:
    with Lab(['a', 'b']) as lab:
        script = 'hostname; ls -A /dev/shm; touch /dev/shm/mark; cat /proc/net/dev'
        first, second = (
            lab.run(name, ['sh', '-c', script]).communicate(timeout=20.0)[0].splitlines()
            for name in ('a', 'b')
        )
        assert first[0] == 'a'
        assert second[0] == 'b'
        assert 'mark' not in second, '/dev/shm is shared'
        devices = {line.split(':')[0].strip() for line in second if ':' in line}
        assert devices == {'lo', 'eth0'}
    assert socket.gethostname() not in ('a', 'b')


def test_nothing_is_left_behind() -> None:
    before = subprocess.run(['ip', '-brief', 'link'], capture_output=True, text=True).stdout
    with Lab(['a', 'b']) as lab:
        # A script whose child is deaf to SIGINT, as all background jobs of a script are.
        script = lab.run('a', ['sh', '-c', 'sleep 1000 & echo $!; wait'])
        child = int(script.stdout.readline())
    assert script.poll() is not None
    with contextlib.suppress(FileNotFoundError):  # gone, or waiting to be taken note of
        state = Path(f'/proc/{child}/stat').read_text().split(') ')[1][0]
        assert state in 'ZX'
    after = subprocess.run(['ip', '-brief', 'link'], capture_output=True, text=True).stdout
    assert after == before
