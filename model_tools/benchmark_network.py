#!/usr/bin/env python3
"""Measure the pipeline over a network: camera, robot and desk as three machines on this one.

    sudo env PATH="$PATH" python model_tools/benchmark_network.py --seconds 20

`source` runs on the camera, detector and tracker on the robot, gateway and observer on the desk.
They are joined by a wire that loses and delays Ethernet frames (network_lab.py; it needs root).
Printed for each case, and with --json written: images of the clip that had no tracks on the desk,
latency from an image's stamp to the arrival of its tracks there, and what the camera sent.

A case is TRANSPORT/RELIABILITY/SETTINGS: raw or compressed, best_effort or reliable, a value of
EDGE_PERCEPTION_TRANSPORT (images, network, default).
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

from command_line import command, write_whole
from live_graph import CLIP
from network_lab import Lab, Link
from rich.console import Console
from rich.table import Column, Table

from edge_perception.metrics.latency import LatencyHistogram
from edge_perception.ros.programs import node_command
from edge_perception.ros.transport import SWITCH_VARIABLE
from edge_perception.types import EdgePerceptionError

CLIP_RATE_HZ = 10.0
OBSERVER = Path(__file__).with_name('observe_graph.py')
MACHINES = ('camera', 'robot', 'desk')
CASES = (
    'raw/best_effort/images',
    'raw/reliable/images',
    'compressed/best_effort/images',
    'compressed/reliable/images',
    'compressed/best_effort/network',
    'compressed/reliable/network',
    'raw/reliable/network',
)
START_S = 60.0
SETTLE_S = 3.0


class NetworkRunError(EdgePerceptionError):
    """The pipeline did not start, or a process of it ended early."""


@dataclass
class Heard:
    """What the observer on the desk has heard so far.

    Attributes:
        arrivals_ns: stamp of an image -> when its tracks arrived first.
        ids: the track ids of each of these.
        doubles: tracks messages for a stamp that had one already.
        diagnostics: the newest values of each node.
    """

    arrivals_ns: dict[int, int] = field(default_factory=dict)
    ids: dict[int, list[str]] = field(default_factory=dict)
    doubles: int = 0
    diagnostics: dict[str, dict[str, str]] = field(default_factory=dict)

    def take(self, line: dict[str, Any]) -> None:
        """One line of observe_graph.py."""
        if 'tracks' in line:
            stamp = line['tracks']
            self.doubles += stamp in self.arrivals_ns
            self.arrivals_ns.setdefault(stamp, line['received_ns'])
            self.ids.setdefault(stamp, line['ids'])
        elif 'node' in line:
            self.diagnostics[line['node']] = line['values']


class Pipeline:
    """The nodes on their machines, and the observer.

    Args:
        lab: with the machines of MACHINES.
        image_transport: raw or compressed.
        reliable: whether lost parts of images are sent again.
        rate_hz: images a second.
        environment: variables for all programs.
        of_machine: variables for those of one machine.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        image_transport: str = 'compressed',
        reliable: bool = True,
        rate_hz: float = CLIP_RATE_HZ,
        environment: Mapping[str, str] | None = None,
        of_machine: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.heard = Heard()
        self._lab = lab
        self._environment = {'PYTHONUNBUFFERED': '1', **(environment or {})}
        self._of_machine = of_machine or {}
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._programs: dict[str, Popen[str]] = {}
        self._output: dict[str, list[str]] = {}
        self._start('desk', 'observer', [sys.executable, str(OBSERVER)])
        self._start('desk', 'gateway', node_command('gateway'))
        robot = [
            'perception:members:=detector,tracker',
            f'perception:image_transport:={image_transport}',
            f'perception:image_reliable:={str(reliable).lower()}',
            'perception:image_depth:=30',
        ]
        self._start('robot', 'perception', node_command('perception', robot))
        self.wait(lambda: 'ready' in self._output['observer'][:1], 'the observer')
        self.wait(lambda: {'detector', 'tracker', 'gateway'} <= self._active(), 'the nodes')
        # The camera comes last, and begins when the robot has subscribed.
        camera = [
            f'source:={json.dumps(str(CLIP))}',
            f'rate_hz:={float(rate_hz)}',
            'wait_for_subscriber:=true',
        ]
        self._start('camera', 'source', node_command('source', camera))

    def wait(
        self, condition: Callable[[], object], what: str, deadline_s: float = START_S
    ) -> None:
        """Take in what the observer says until a condition holds.

        Raises:
            NetworkRunError: it does not in time, or a program ended.
        """
        end_s = time.monotonic() + deadline_s
        while not condition():
            left_s = end_s - time.monotonic()
            for name, program in self._programs.items():
                if program.poll() is not None:
                    raise NetworkRunError(f'{name} ended: {"".join(self._output[name][-5:])}')
            if left_s < 0:
                raise NetworkRunError(f'waited {deadline_s:.0f} s for {what}')
            try:
                line = self._lines.get(timeout=min(left_s, 0.5))
            except queue.Empty:
                continue
            self.heard.take(json.loads(line))

    def watch(self, seconds: float) -> None:
        """Take in what the observer says for a time."""
        end_s = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() >= end_s, 'the time', seconds + START_S)

    def _active(self) -> set[str]:
        return {
            name
            for name, values in self.heard.diagnostics.items()
            if values.get('state') == 'active'
        }

    def _start(self, machine: str, name: str, command: Sequence[str]) -> None:
        program = self._lab.run(
            machine, command, {**self._environment, **self._of_machine.get(machine, {})}
        )
        self._programs[name] = program
        self._output[name] = []
        threading.Thread(target=self._read, args=(name, program), daemon=True).start()

    def _read(self, name: str, program: Popen[str]) -> None:
        assert program.stdout is not None
        try:
            for line in program.stdout:
                if line.startswith('{"'):
                    self._lines.put(line)
                    line = 'ready'
                self._output[name].append(line)
        except ValueError:  # closed at the end
            pass


def missed_images(stamps_ns: Sequence[int], rate_hz: float, end_ns: int) -> list[int]:
    """Which images of an even stream have no stamp here.

    Args:
        stamps_ns: of the images that were answered, at least one.
        rate_hz: of the stream.
        end_ns: time of the last image to look for.

    Returns:
        Numbers of images, counted from the first that was answered.
    """
    first_ns = min(stamps_ns)
    answered = {round((stamp - first_ns) * rate_hz / 1e9) for stamp in stamps_ns}
    count = int((end_ns - first_ns) * rate_hz / 1e9) + 1
    return sorted(set(range(count)) - answered)


def measure(case: str, link: Link, *, rate_hz: float, seconds: float) -> dict[str, Any]:
    """Run one case and return its figures."""
    transport, reliability, settings = case.split('/')
    with Lab(MACHINES, link) as lab:
        pipeline = Pipeline(
            lab,
            image_transport=transport,
            reliable=reliability == 'reliable',
            rate_hz=rate_hz,
            environment={SWITCH_VARIABLE: settings},
        )
        heard = pipeline.heard
        before_bytes = lab.sent_bytes('camera')
        started_s = time.monotonic()
        pipeline.watch(seconds)
        end_ns = time.time_ns()
        sent_bytes = lab.sent_bytes('camera') - before_bytes
        elapsed_s = time.monotonic() - started_s
        pipeline.watch(SETTLE_S)  # what was sent again may still be on its way
    arrivals_ns = {
        stamp: arrived for stamp, arrived in heard.arrivals_ns.items() if stamp <= end_ns
    }
    figures = {
        'images': round(seconds * rate_hz),
        'missed': round(seconds * rate_hz),
        'camera_mbit_s': sent_bytes * 8 / elapsed_s / 1e6,
    }
    if arrivals_ns:
        latency = LatencyHistogram()
        for stamp, arrived_ns in arrivals_ns.items():
            latency.add((arrived_ns - stamp) / 1e6)
        summary = latency.summary()
        missed = missed_images(list(arrivals_ns), rate_hz, end_ns)
        figures |= {
            'images': len(arrivals_ns) + len(missed),
            'missed': len(missed),
            'latency_p50_ms': summary.p50_ms,
            'latency_p95_ms': summary.p95_ms,
            'latency_max_ms': summary.max_ms,
        }
    return figures


@command('benchmark_network')
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--cases', nargs='+', default=CASES, metavar='CASE')
    parser.add_argument('--seconds', type=float, default=20.0, help='length of a case')
    parser.add_argument('--rate', type=float, default=CLIP_RATE_HZ, help='images a second')
    parser.add_argument('--rate-mbit', type=float, default=Link.rate_mbit)
    parser.add_argument('--delay-ms', type=float, default=Link.delay_ms)
    parser.add_argument('--loss-percent', type=float, default=Link.loss_percent)
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args(arguments)
    link = Link(args.rate_mbit, args.delay_ms, args.loss_percent)
    table = Table(
        Column('case', no_wrap=True),
        'images',
        'without tracks',
        'p50 ms',
        'p95 ms',
        'max ms',
        'Mbit/s',
    )
    results = {}
    for case in args.cases:
        figures = measure(case, link, rate_hz=args.rate, seconds=args.seconds)
        results[case] = figures
        keys = ('images', 'missed', 'latency_p50_ms', 'latency_p95_ms', 'latency_max_ms')
        cells = [f'{figures[key]:.0f}' if key in figures else '-' for key in keys]
        table.add_row(case, *cells, f'{figures["camera_mbit_s"]:.1f}')
        Console().print(f'{case}: {figures}')
    Console().print(table)
    if args.json:
        text = json.dumps({'link': asdict(link), 'cases': results}, indent=2)
        write_whole(args.json, lambda path: path.write_text(text))
    return 0


if __name__ == '__main__':
    sys.exit(main())
