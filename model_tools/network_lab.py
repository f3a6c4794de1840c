"""Machines of a small network on this one: apart from each other, joined by a lossy wire.

    with Lab(['camera', 'robot']) as lab:
        lab.run('robot', [sys.executable, '-m', 'edge_perception.nodes.detector'])

Each machine has a network, a host name, System V memory and a /dev/shm of its own (Linux
namespaces), so that nothing passes between them but what goes over the wire. The wire is a switch
in user space: it takes Ethernet frames from a TAP interface of each machine and hands them on
after the time that sending them at the given rate takes and a delay, or not at all. Unlike
`tc netem` it needs no kernel module. It needs root and /dev/net/tun.

`python network_lab.py ... PID...` is the switch.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_perception.ros.transport import PROFILE_VARIABLES
from edge_perception.types import EdgePerceptionError

TUN = Path('/dev/net/tun')
NETWORK = '10.77.0'
# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_FRAME_BYTES = 2048
_FRAMES_A_TURN = 64
# What a small switch keeps for one port; more is lost.
_BUFFER_BYTES = 4 * 2**20


class LabError(EdgePerceptionError):
    """The machines cannot be made here, or one of them ended."""


@dataclass(frozen=True)
class Link:
    """What the wire does to each frame, on its way from one machine to another.

    Attributes:
        rate_mbit: bits a second on the way out of the switch, in millions.
        delay_ms: time on the way, in milliseconds.
        loss_percent: how many of 100 frames do not arrive.
        seed: of the random numbers that say which.
    """

    rate_mbit: float = 1000.0
    delay_ms: float = 2.0
    loss_percent: float = 1.0
    seed: int = 0


def missing() -> str:
    """What this machine lacks for a Lab; empty when it has all."""
    if os.geteuid() != 0:
        return 'root'
    if not os.access(TUN, os.R_OK | os.W_OK):
        return str(TUN)
    for program in ('ip', 'unshare', 'nsenter'):
        if not shutil.which(program):
            return f'the program {program}'
    tried = subprocess.run(
        ['unshare', '--net', '--mount', '--ipc', '--uts', 'true'], capture_output=True
    )
    return 'the right to make namespaces' if tried.returncode else ''


class Lab:
    """Machines with the addresses 10.77.0.1, 10.77.0.2, ... in the order of their names.

    Args:
        names: host names.
        link: what the wire does.

    Raises:
        LabError: on entering, when this machine cannot do it.
    """

    def __init__(self, names: Sequence[str], link: Link | None = None) -> None:
        self.addresses = {name: f'{NETWORK}.{i}' for i, name in enumerate(names, 1)}
        self._link = link or Link()
        self._keepers: dict[str, subprocess.Popen[str]] = {}
        self._processes: list[subprocess.Popen[str]] = []
        self._switch: subprocess.Popen[str] | None = None

    def __enter__(self) -> Lab:
        if lacks := missing():
            raise LabError(f'a network of machines needs {lacks}')
        try:
            for name in self.addresses:
                self._keepers[name] = self._make_machine(name)
            link = self._link
            self._switch = subprocess.Popen(
                [
                    *(sys.executable, __file__),
                    *(f'--rate-mbit={link.rate_mbit}', f'--delay-ms={link.delay_ms}'),
                    *(f'--loss-percent={link.loss_percent}', f'--seed={link.seed}'),
                    *(str(keeper.pid) for keeper in self._keepers.values()),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            _expect_line(self._switch, 'the switch')
            for name, address in self.addresses.items():
                self._call(name, 'ip', 'address', 'add', f'{address}/24', 'dev', 'eth0')
                for device in ('lo', 'eth0'):
                    self._call(name, 'ip', 'link', 'set', device, 'up')
                # As on any machine of a local network; multicast goes this way too.
                self._call(name, 'ip', 'route', 'add', 'default', 'dev', 'eth0')
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self, machine: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a program on a machine; it ends with the lab.

        Args:
            machine: its name.
            command: program and arguments.
            environment: variables beside those of this process. The profile of its middleware is
                not among them: a machine has its own.
        """
        inherited = {k: v for k, v in os.environ.items() if k not in PROFILE_VARIABLES}
        process = subprocess.Popen(
            [*self._enter(machine), *command],
            env={**inherited, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a program may be a script that starts the real one
        )
        self._processes.append(process)
        return process

    def sent_bytes(self, machine: str) -> int:
        """What a machine has sent over the wire since it was made."""
        lines = Path(f'/proc/{self._keepers[machine].pid}/net/dev').read_text().splitlines()
        counts = next(line.split(':')[1].split() for line in lines if 'eth0:' in line)
        return int(counts[8])

    def end_programs(self) -> None:
        """SIGINT to all programs and what they have started, SIGKILL to those that do not go."""
        for process in self._processes:
            _signal_group(process, signal.SIGINT)
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10.0)
            _signal_group(process, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._processes.clear()

    def close(self) -> dict[str, int]:
        """End programs, wire and machines.

        Returns:
            Frames and bytes that the wire has carried and lost; empty when it never was.
        """
        self.end_programs()
        counts: dict[str, int] = {}
        if self._switch is not None:
            self._switch.send_signal(signal.SIGTERM)
            output, _ = self._switch.communicate(timeout=10.0)
            with contextlib.suppress(ValueError):
                counts = json.loads(output)
            self._switch = None
        for keeper in self._keepers.values():
            keeper.communicate()  # it ends with its input, and its namespaces with it
        self._keepers.clear()
        return counts

    def _make_machine(self, name: str) -> subprocess.Popen[str]:
        """A process that keeps the namespaces of a machine while its input is open."""
        script = (
            f'mount -t tmpfs -o mode=1777 tmpfs /dev/shm && hostname {name} && echo ready '
            '&& exec cat'
        )
        namespaces = ['--net', '--mount', '--ipc', '--uts', '--propagation', 'private']
        keeper = subprocess.Popen(
            ['unshare', *namespaces, 'sh', '-c', script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        _expect_line(keeper, f'machine {name}')
        return keeper

    def _enter(self, machine: str) -> list[str]:
        target = str(self._keepers[machine].pid)
        return ['nsenter', '--target', target, '--net', '--mount', '--ipc', '--uts', '--']

    def _call(self, machine: str, *command: str) -> None:
        result = subprocess.run([*self._enter(machine), *command], capture_output=True, text=True)
        if result.returncode:
            raise LabError(f'{" ".join(command)} on {machine}: {result.stderr.strip()}')


def _signal_group(process: subprocess.Popen[str], signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signum)


def _expect_line(process: subprocess.Popen[str], what: str) -> None:
    assert process.stdout is not None
    if not process.stdout.readline():
        raise LabError(f'{what} could not be started')


class Switch:
    """Hands Ethernet frames from port to port, late and not all of them.

    Args:
        ports: file descriptors of TAP interfaces, non-blocking.
        link: what happens on the way.
    """

    def __init__(self, ports: Sequence[int], link: Link) -> None:
        self._ports = ports
        self._delay_s = link.delay_ms / 1e3
        self._s_per_byte = 8.0 / (link.rate_mbit * 1e6)
        self._loss = link.loss_percent / 100.0
        self._random = random.Random(link.seed)
        self._port_of: dict[bytes, int] = {}
        # Of each port: when its wire is free again, and the frames on it with their arrival.
        self._free_s = dict.fromkeys(ports, 0.0)
        self._waiting: dict[int, deque[tuple[float, bytes]]] = {port: deque() for port in ports}
        self.counts = {'frames': 0, 'bytes': 0, 'lost': 0, 'overflowed': 0}

    def turn(self) -> None:
        """Wait for what comes first, a frame or the time of one, and do what is due."""
        first_s = min((queue[0][0] for queue in self._waiting.values() if queue), default=None)
        timeout_s = None if first_s is None else max(first_s - time.monotonic(), 0.0)
        for port in select.select(self._ports, [], [], timeout_s)[0]:
            with contextlib.suppress(BlockingIOError):
                for _ in range(_FRAMES_A_TURN):
                    self._take(port, os.read(port, _FRAME_BYTES))
        now_s = time.monotonic()
        for port, queue in self._waiting.items():
            while queue and queue[0][0] <= now_s:
                # A machine that is not up yet, or takes in no more, loses it.
                with contextlib.suppress(OSError):
                    os.write(port, queue.popleft()[1])

    def _take(self, source: int, frame: bytes) -> None:
        now_s = time.monotonic()
        self._port_of[frame[6:12]] = source
        known = self._port_of.get(frame[:6])
        for port in [known] if known is not None else self._ports:
            if port == source:
                continue
            self.counts['frames'] += 1
            self.counts['bytes'] += len(frame)
            if self._random.random() < self._loss:
                self.counts['lost'] += 1
                continue
            free_s = max(self._free_s[port], now_s)
            if (free_s - now_s) > _BUFFER_BYTES * self._s_per_byte:
                self.counts['overflowed'] += 1
                continue
            self._free_s[port] = free_s + len(frame) * self._s_per_byte
            self._waiting[port].append((self._free_s[port] + self._delay_s, frame))


def _open_tap(name: str) -> int:
    port = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(port, _TUNSETIFF, struct.pack('16sH', name.encode(), _IFF_TAP | _IFF_NO_PI))
    return port


def main() -> int:
    """Be the switch between the network namespaces of some processes, until SIGTERM."""
    parser = argparse.ArgumentParser(description='The switch of a Lab.')
    for name in ('rate-mbit', 'delay-ms', 'loss-percent'):
        parser.add_argument(f'--{name}', type=float, required=True)
    parser.add_argument('--seed', type=int, required=True)
    parser.add_argument('pids', nargs='+', help='process in the namespace of each machine')
    args = parser.parse_args()
    ports = []
    for number, pid in enumerate(args.pids):
        name = f'lab{os.getpid()}.{number}'[-15:]
        ports.append(_open_tap(name))
        # Frames wait here while the switch has its hands full.
        settings: list[list[str]] = [['txqueuelen', '10000'], ['netns', pid, 'name', 'eth0']]
        for setting in settings:
            subprocess.run(['ip', 'link', 'set', name, *setting], check=True)
    switch = Switch(ports, Link(args.rate_mbit, args.delay_ms, args.loss_percent, args.seed))

    def stop(*_: Any) -> None:
        print(json.dumps(switch.counts), flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who uses the lab
    print('ready', flush=True)
    while True:
        switch.turn()


if __name__ == '__main__':
    sys.exit(main())
