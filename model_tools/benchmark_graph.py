#!/usr/bin/env python3
"""Measure the running graph: images of another process in, tracks messages out.

    python model_tools/benchmark_graph.py --size 1920x1080 --rate 30 --every-n 5 --seconds 60

One process publishes bgr8 images in real time, `perception` runs as it does for a user, and this
process takes in the tracks. Printed, and with --json written: images lost, latency from the
image's stamp to the arrival of its tracks message, memory and CPU time of `perception`, and the
95th percentile of the stages of the nodes.

--runs repeats it; the last column is the median over the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from command_line import command, parse_size, write_whole
from live_graph import CLIP, LiveRun, answered_stamp_ns, run_live
from rich.console import Console
from rich.table import Table

from edge_perception.metrics.latency import LatencyHistogram


def figures(run: LiveRun) -> dict[str, Any]:
    """What a run says, as numbers."""
    latency_ms: dict[int, float] = {}
    for arrived_ns, message in run.tracks:
        stamp = answered_stamp_ns(message)
        latency_ms[stamp] = (arrived_ns - stamp) / 1e6
    lost = [i for i, stamp in enumerate(run.stamps_ns) if stamp not in latency_ms]
    latency = LatencyHistogram()
    for stamp in run.stamps_ns:
        if stamp in latency_ms:
            latency.add(latency_ms[stamp])
    summary = latency.summary()
    # The first quarter is start-up: caches, pools and the first detections.
    rss_mib = run.usage.rss_mib
    times_s, sizes_mib = rss_mib[len(rss_mib) // 4 :].T
    slope = np.polyfit(times_s, sizes_mib, 1)[0] if len(times_s) > 2 else float('nan')
    return {
        'published': len(run.stamps_ns),
        'answered': len(run.stamps_ns) - len(lost),
        'lost': len(lost),
        'latency_p50_ms': summary.p50_ms,
        'latency_p95_ms': summary.p95_ms,
        'latency_p99_ms': summary.p99_ms,
        'latency_max_ms': summary.max_ms,
        'cpu_percent_of_one_core': run.usage.cpu_percent_of_one_core,
        'rss_mib': float(sizes_mib[-1]) if len(sizes_mib) else float('nan'),
        'rss_growth_mib_per_minute': float(slope) * 60.0,
        'lost_frames': lost,
        'stages_p95_ms': {
            f'{node} {key.split("_ms")[0]}': float(value)
            for node, values in run.diagnostics.items()
            for key, value in values.items()
            if key.endswith('_ms.p95') and node != 'metrics'
        },
    }


@command('benchmark_graph')
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--size', type=parse_size, default=(1920, 1080), help='width x height of the images'
    )
    parser.add_argument('--rate', type=float, default=30.0, help='images a second')
    parser.add_argument('--seconds', type=float, default=30.0, help='length of a run')
    parser.add_argument('--every-n', type=int, default=5, help='detect on every N-th image')
    parser.add_argument('--runs', type=int, default=1)
    parser.add_argument('--model', help='model file (default: the one of this package)')
    parser.add_argument(
        '--parameter', action='append', default=[], help='NODE:NAME:=VALUE for perception'
    )
    parser.add_argument('--clip', type=Path, default=CLIP, help='where the images come from')
    parser.add_argument('--domain-id', type=int, help='ROS domain of the measurement')
    parser.add_argument('--json', type=Path, help='write the figures of all runs here')
    args = parser.parse_args(arguments)
    parameters = [f'detector:detect_every_n:={args.every_n}', *args.parameter]
    if args.model:
        parameters.append(f'detector:model_path:={args.model}')
    runs = [
        figures(
            run_live(
                args.clip,
                rate_hz=args.rate,
                parameters=parameters,
                size_wh=args.size,
                seconds=args.seconds,
                domain_id=args.domain_id,
            )
        )
        for _ in range(args.runs)
    ]
    table = Table('', *(f'run {i + 1}' for i in range(len(runs))), 'median')
    rows = {key: [run[key] for run in runs] for key in runs[0]}
    for stage in runs[0]['stages_p95_ms']:
        rows[f'{stage} p95 ms'] = [run['stages_p95_ms'].get(stage, float('nan')) for run in runs]
    for key, values in rows.items():
        if isinstance(values[0], (int, float)):
            cells = [*values, statistics.median(values)]
            table.add_row(key, *(f'{value:.2f}' for value in cells))
    Console().print(table)
    if args.json:
        text = json.dumps({'arguments': vars(args), 'runs': runs}, default=str)
        write_whole(args.json, lambda path: path.write_text(text))
    return 0


if __name__ == '__main__':
    sys.exit(main())
