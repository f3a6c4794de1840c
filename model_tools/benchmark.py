"""Measure detectors side by side: latency, its stages, and what the detector adds to its engine.

    python model_tools/benchmark.py --model models/person_416.onnx yolov8n.onnx --json out.json

All models are measured in turns in one process, so that a busy machine slows them alike: compare
the ratios. For ONNX files each call is paired with a bare `session.run` of the same session on an
input that is ready: `ratio` is the median call over the median bare run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from edge_perception.detection import Detector
from edge_perception.detection.backends.onnx import OnnxBackend
from edge_perception.media import open_source
from edge_perception.types import EdgePerceptionError

PERCENTILES = (50, 90, 95, 99)
STAGES = ('preprocess', 'inference', 'postprocess')


class BenchmarkError(EdgePerceptionError):
    """Nothing can be measured as asked."""


@dataclass
class Candidate:
    """One detector under measurement and its samples in milliseconds.

    Attributes:
        detector: of one model.
        images: what each call detects on.
        call_ms: durations of whole calls.
        stage_ms: durations of each stage of these calls.
        bare_ms: durations of the engine's bare run; empty where there is none to compare with.
    """

    detector: Detector
    images: list[NDArray[np.uint8]]
    call_ms: list[float] = field(default_factory=list)
    stage_ms: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in STAGES})
    bare_ms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._bare_run: Callable[[], Any] | None = None
        backend = self.detector.backend
        blob = self.detector.preprocess(self.images)[0].copy()
        self._input_hw = list(blob.shape[2:])
        if isinstance(backend, OnnxBackend):
            feed = {backend.input_spec.name: blob}
            self._bare_run = lambda: backend.session.run(None, feed)

    def warm_up(self, runs: int) -> None:
        """Calls that do not count."""
        for _ in range(runs):
            self.detector(self.images)

    def measure(self, *, bare_first: bool) -> None:
        """One call, and one bare run before or after it."""
        if bare_first:
            self._measure_bare()
        self.call_ms.append(_duration_ms(lambda: self.detector(self.images)))
        for stage, duration_ms in self.detector.timings.items():
            self.stage_ms[stage].append(duration_ms)
        if not bare_first:
            self._measure_bare()

    def report(self) -> dict[str, Any]:
        """Figures for people and programs."""
        detector = self.detector
        figures: dict[str, Any] = {
            'model': detector.backend.model_path.name,
            'backend': detector.backend_name,
            'device': detector.device,
            'layout': detector.layout.value,
            'input_hw': self._input_hw,
            'batch': len(self.images),
            'runs': len(self.call_ms),
            'latency_ms': summary(self.call_ms),
            'fps': 1e3 * len(self.images) / float(np.median(self.call_ms)),
            'stages_ms': {stage: summary(samples) for stage, samples in self.stage_ms.items()},
        }
        if self.bare_ms:
            figures['bare_run_ms'] = summary(self.bare_ms)
            figures['ratio'] = float(np.median(self.call_ms) / np.median(self.bare_ms))
        return figures

    def _measure_bare(self) -> None:
        if self._bare_run is not None:
            self.bare_ms.append(_duration_ms(self._bare_run))


def _duration_ms(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def summary(samples_ms: Sequence[float]) -> dict[str, float]:
    """Average and percentiles of durations."""
    values = np.percentile(samples_ms, PERCENTILES)
    return {
        'avg': float(np.mean(samples_ms)),
        **{f'p{p}': float(value) for p, value in zip(PERCENTILES, values, strict=True)},
    }


def benchmark(
    detectors: Sequence[Detector],
    image: NDArray[np.uint8],
    *,
    runs: int = 50,
    warm_up: int = 5,
    batch: int = 1,
) -> list[dict[str, Any]]:
    """Measure detectors in turns.

    Args:
        detectors: what to measure.
        image: (h, w, 3) uint8 BGR that all of them see.
        runs: measured calls of each.
        warm_up: calls of each before.
        batch: how many times the image is given in a call.

    Returns:
        One dictionary a detector, in order.

    Raises:
        BenchmarkError: a count is under 1.
    """
    if runs < 1 or batch < 1:
        raise BenchmarkError('--runs and --batch must be at least 1')
    candidates = [Candidate(detector, [image] * batch) for detector in detectors]
    for candidate in candidates:
        candidate.warm_up(warm_up)
    for turn in track(range(runs), 'benchmark', console=Console(stderr=True)):
        for candidate in candidates:
            # Whoever runs second finds the caches in another state, so they take turns.
            candidate.measure(bare_first=turn % 2 == 0)
    return [candidate.report() for candidate in candidates]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        'processor': platform.processor() or platform.machine(),
        'cores': os.cpu_count(),
        'system': platform.platform(),
        'python': platform.python_version(),
    }


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """The results for people."""
    table = Table(title='milliseconds; stages: medians')
    for column in ('model', 'backend', 'input', 'avg', *(f'p{p}' for p in PERCENTILES)):
        table.add_column(column, justify='left' if column in ('model', 'backend') else 'right')
    for column in ('fps', 'pre', 'infer', 'post', 'bare p50', 'ratio'):
        table.add_column(column, justify='right')
    for result in results:
        table.add_row(
            result['model'],
            f'{result["backend"]} {result["device"]}',
            'x'.join(map(str, result['input_hw'])),
            *(f'{value:.1f}' for value in result['latency_ms'].values()),
            f'{result["fps"]:.1f}',
            *(f'{result["stages_ms"][stage]["p50"]:.2f}' for stage in STAGES),
            f'{result["bare_run_ms"]["p50"]:.1f}' if 'ratio' in result else '-',
            f'{result["ratio"]:.3f}' if 'ratio' in result else '-',
        )
    # A pipe has no width: a table that is cut there would lose its last columns.
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def first_image(source_uri: str | None, synthetic_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The source's first frame, or without a source an image of noise."""
    if source_uri is None:
        random = np.random.default_rng(0)
        return random.integers(0, 256, (*synthetic_hw, 3), np.uint8)
    with open_source(source_uri) as source:
        return next(source).image.copy()


def parse_size(text: str) -> tuple[int, int]:
    """`1280x720` (width x height) as (height, width)."""
    width, _, height = text.partition('x')
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text!r} is no size such as 1280x720')
    return int(height), int(width)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', nargs='+', required=True, help='model files')
    parser.add_argument('--backend', default='auto')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--source', help='image, video, ... whose first frame is used')
    parser.add_argument(
        '--frame-size', type=parse_size, default=(720, 1280), help='of the noise without --source'
    )
    parser.add_argument('--imgsz', type=int, help='input size in pixels')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--runs', type=int, default=50)
    parser.add_argument('--warm-up', type=int, default=5)
    parser.add_argument('--threads', type=int, help='CPU threads of the engine')
    parser.add_argument(
        '--spin',
        action='store_true',
        help='let idle engine threads spin, as ONNX Runtime does by default: they then take the '
        'CPU from whatever is measured next',
    )
    parser.add_argument('--json', type=Path, help='file for the figures')
    options = parser.parse_args(arguments)
    try:
        image = first_image(options.source, options.frame_size)
        with contextlib.ExitStack() as stack:
            detectors = [
                stack.enter_context(
                    Detector(
                        options.backend,
                        model_path=model,
                        device=options.device,
                        image_size=options.imgsz,
                        threads=options.threads,
                        spin=options.spin,
                    )
                )
                for model in options.model
            ]
            results = benchmark(
                detectors,
                image,
                runs=options.runs,
                warm_up=options.warm_up,
                batch=options.batch,
            )
        print_table(results)
        if options.json:
            report = {'machine': machine(), 'frame_hw': image.shape[:2], 'results': results}
            beside = options.json.with_name(f'.{options.json.name}.{os.getpid()}')
            try:
                beside.write_text(json.dumps(report, indent=2) + '\n')
                os.replace(beside, options.json)
            except OSError as error:
                raise BenchmarkError(f'cannot write {options.json}: {error}') from error
            finally:
                beside.unlink(missing_ok=True)
    except EdgePerceptionError as error:
        print(f'benchmark: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('benchmark: stopped', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
