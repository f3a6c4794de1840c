"""Measure detectors side by side: latency, its stages, and what the detector adds to its engine.

    python model_tools/benchmark.py --model models/person_416.onnx yolov8n.onnx
    python model_tools/benchmark.py --model yolov8n.onnx yolov8n_int8.onnx \\
        --backend onnx openvino auto --ultralytics --frame-size 1920x1080

All models on all backends are measured in turns in one process, so that a busy machine slows them
alike: compare the ratios. Each call is paired with a bare run of the engine on an input that is
ready: `ratio` is the median call over the median bare run. With --ultralytics each call is also
paired with Ultralytics' own predict on the same file: `x ultra` is how much longer that takes.

How well `auto` chooses among the CPU's backends, in many loadings of each model:

    python model_tools/benchmark.py --model yolov8n.onnx yolov8n_int8.onnx \\
        --backend onnx openvino --auto-trials 10

Writes benchmark_results.json and a plot beside it. `cpu` is the processor time of a call over its
duration, 100 % being one core. Energy is that of the whole processor and GPU during a call, where
the machine tells it (RAPL needs root on most), so it means something on an idle machine only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from command_line import command, parse_size, progress, write_whole
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edge_perception.detection import Detector
from edge_perception.detection.backends import backend_class
from edge_perception.detection.backends.onnx import OnnxBackend
from edge_perception.detection.backends.openvino import OpenVinoBackend
from edge_perception.detection.errors import DetectionError
from edge_perception.media import open_source
from edge_perception.metrics.system import SystemSampler
from edge_perception.types import EdgePerceptionError

PERCENTILES = (50, 90, 95, 99)
STAGES = ('preprocess', 'inference', 'postprocess')
RAPL = Path('/sys/class/powercap')
SETTLE_S = 0.1
"""Idle threads of Ultralytics' session spin for as long, in the way of whatever comes next."""


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
        ultralytics: predicts on the same image; None for no comparison.
        ultralytics_ms: durations of that.
        cpu_s: processor time of all calls.
        energy_j: of processor and GPU during all calls, by meter.
    """

    detector: Detector
    images: list[NDArray[np.uint8]]
    call_ms: list[float] = field(default_factory=list)
    stage_ms: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in STAGES})
    bare_ms: list[float] = field(default_factory=list)
    ultralytics: Callable[[], Any] | None = None
    ultralytics_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    energy_j: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._bare_run: Callable[[], Any] | None = None
        backend = self.detector.backend
        blob = self.detector.preprocess(self.images)[0].copy()
        self._input_hw = list(blob.shape[2:])
        if isinstance(backend, OnnxBackend):
            feed = {backend.input_spec.name: blob}
            self._bare_run = lambda: backend.session.run(None, feed)
        elif isinstance(backend, OpenVinoBackend):
            request = backend.compiled_model.create_infer_request()
            self._bare_run = lambda: request.infer([blob], share_inputs=True, share_outputs=True)

    def warm_up(self, runs: int) -> None:
        """Calls that do not count."""
        for _ in range(runs):
            self.detector(self.images)
            if self._bare_run is not None:
                self._bare_run()
            if self.ultralytics is not None:
                self.ultralytics()

    def measure(self, meters: Sequence[EnergyMeter], *, bare_first: bool) -> None:
        """One call, and one bare run before or after it."""
        if self.ultralytics is not None:
            self.ultralytics_ms.append(_duration_ms(self.ultralytics))
            time.sleep(SETTLE_S)
        if bare_first:
            self._measure_bare()
        before = [meter.joules() for meter in meters]
        cpu_s = time.process_time()
        self.call_ms.append(_duration_ms(lambda: self.detector(self.images)))
        self.cpu_s += time.process_time() - cpu_s
        for meter, joules in zip(meters, before, strict=True):
            spent = self.energy_j.get(meter.name, 0.0) + meter.joules() - joules
            self.energy_j[meter.name] = spent
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
        if self.ultralytics_ms:
            figures['ultralytics_ms'] = summary(self.ultralytics_ms)
            figures['times_faster_than_ultralytics'] = float(
                np.median(self.ultralytics_ms) / np.median(self.call_ms)
            )
        figures['reason'] = detector.reason
        figures['cpu_ms'] = 1e3 * self.cpu_s / len(self.call_ms)
        figures['cpu_percent'] = 1e5 * self.cpu_s / sum(self.call_ms)
        images = len(self.call_ms) * len(self.images)
        figures['energy_j_per_image'] = {
            name: joules / images for name, joules in self.energy_j.items()
        }
        return figures

    def _measure_bare(self) -> None:
        if self._bare_run is not None:
            self.bare_ms.append(_duration_ms(self._bare_run))


@dataclass(frozen=True)
class EnergyMeter:
    """A counter of energy.

    Attributes:
        name: what it counts for.
        joules: reads it.
    """

    name: str
    joules: Callable[[], float]


def energy_meters(rapl: Path = RAPL) -> list[EnergyMeter]:
    """The counters that can be read here: processor packages (RAPL) and NVIDIA GPUs (NVML)."""
    meters = []
    for zone in sorted(rapl.glob('intel-rapl:[0-9]')):
        counter = zone / 'energy_uj'
        with contextlib.suppress(OSError):
            name = (zone / 'name').read_text().strip()
            counter.read_text()
            meters.append(EnergyMeter(name, partial(_rapl_joules, counter)))
    with contextlib.suppress(Exception):  # no library, no driver, or a GPU without the counter
        import pynvml

        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            meters.append(EnergyMeter(f'gpu-{index}', partial(_nvml_joules, handle)))
    return meters


def _rapl_joules(counter: Path) -> float:
    return int(counter.read_text()) / 1e6


def _nvml_joules(handle: Any) -> float:
    import pynvml

    return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)


def ultralytics_predict(detector: Detector, images: list[NDArray[np.uint8]]) -> Callable[[], Any]:
    """Ultralytics' own predict with the model and the settings of a detector.

    Raises:
        BenchmarkError: ultralytics is not installed, or cannot run the file.
    """
    os.environ.setdefault('YOLO_OFFLINE', 'true')
    os.environ.setdefault('YOLO_AUTOINSTALL', 'false')
    try:
        from ultralytics import YOLO

        network = YOLO(str(detector.backend.model_path), task='detect')

        def predict() -> Any:
            return network.predict(
                images,
                imgsz=list(detector.image_hw),
                conf=detector.score_threshold,
                iou=detector.iou_threshold,
                max_det=detector.max_detections,
                device=detector.device.replace('cuda:', ''),
                verbose=False,
            )

        predict()
    except Exception as error:  # whatever its many parts raise
        reason = ' '.join(str(error).split())
        raise BenchmarkError(
            f'ultralytics cannot run {detector.backend.model_path}: {reason}'
        ) from error
    return predict


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
    compare_ultralytics: bool = False,
) -> list[dict[str, Any]]:
    """Measure detectors in turns.

    Args:
        detectors: what to measure.
        image: (h, w, 3) uint8 BGR that all of them see.
        runs: measured calls of each.
        warm_up: calls of each before.
        batch: how many times the image is given in a call.
        compare_ultralytics: measure Ultralytics' predict beside each.

    Returns:
        One dictionary a detector, in order.

    Raises:
        BenchmarkError: a count is under 1.
    """
    if runs < 1 or batch < 1:
        raise BenchmarkError('--runs and --batch must be at least 1')
    images = [image] * batch
    candidates = [Candidate(detector, images) for detector in detectors]
    if compare_ultralytics:
        for candidate in candidates:
            candidate.ultralytics = ultralytics_predict(candidate.detector, images)
    meters = energy_meters()
    for candidate in candidates:
        candidate.warm_up(warm_up)
    with progress(range(runs), 'benchmark') as turns:
        for turn in turns:
            for candidate in candidates:
                # Whoever runs second finds the caches in another state, so they take turns.
                candidate.measure(meters, bare_first=turn % 2 == 0)
    return [candidate.report() for candidate in candidates]


def judge_auto(
    results: Sequence[dict[str, Any]], models: Sequence[str], *, trials: int, **settings: Any
) -> list[dict[str, Any]]:
    """Load each model several times with `auto`, and compare its choices with what was measured.

    Args:
        results: of `benchmark`, with each backend that `auto` may choose.
        models: the model files.
        trials: loadings of each.
        settings: of the detectors.

    Returns:
        For each model how often each backend was chosen, and how many times longer than the
        fastest one the chosen ones took: by medians, and by processor time, which other work on
        the machine changes little.
    """
    judged = []
    for model in models:
        name = Path(model).name
        measured = {item['backend']: item for item in results if item['model'] == name}
        chosen: Counter[str] = Counter()
        load_s = []
        for _ in range(trials):
            start_s = time.perf_counter()
            with Detector('auto', model_path=model, **settings) as detector:
                chosen[detector.backend_name] += 1
            load_s.append(time.perf_counter() - start_s)
        missing = chosen.keys() - measured.keys()
        if missing:
            raise BenchmarkError(
                f'{name}: auto chose {", ".join(sorted(missing))}, which was not measured: '
                f'add it to --backend'
            )
        entry: dict[str, Any] = {'model': name, 'chosen': dict(chosen)}
        for key, cost in (
            ('latency', lambda item: item['latency_ms']['p50']),
            ('cpu', lambda item: item['cpu_ms']),
        ):
            costs = {backend: cost(item) for backend, item in measured.items()}
            ratios = [costs[item] / min(costs.values()) for item in chosen.elements()]
            entry[f'{key}_ratio_mean'] = float(np.mean(ratios))
            entry[f'{key}_ratio_worst'] = max(ratios)
        entry['load_s'] = float(np.median(load_s))
        judged.append(entry)
    return judged


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how loaded it is now."""
    sampler = SystemSampler()
    sample = sampler.sample([os.getpid()])
    sampler.close()
    return {
        'processor': _processor(),
        'cores': os.cpu_count(),
        'system': platform.platform(),
        'python': platform.python_version(),
        'load_average': os.getloadavg()[0],
        'rss_mib': sample.processes[os.getpid()].rss_mib,
        'gpus': [asdict(gpu) for gpu in sample.gpus],
    }


def _processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def write_plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of the median stages of each result, with a line to the 90th percentile."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.5 * len(results)), layout='constrained')
    names = [f'{item["model"]}\n{item["backend"]} {item["device"]}' for item in results]
    rows = range(len(results))
    left = np.zeros(len(results))
    for stage in STAGES:
        widths = np.array([item['stages_ms'][stage]['p50'] for item in results])
        axes.barh(rows, widths, left=left, label=stage)
        left += widths
    late = np.array([item['latency_ms']['p90'] for item in results])
    axes.hlines(rows, left, np.maximum(late, left), colors='grey', label='to p90')
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set_xlabel('milliseconds')
    axes.legend(loc='lower right')
    figure.savefig(path, format='png', dpi=120)
    pyplot.close(figure)


def open_detectors(
    models: Sequence[str], backends: Sequence[str], **settings: Any
) -> Iterator[tuple[Detector | None, str]]:
    """Every model on every backend that reads such files, or why a combination is left out.

    Raises:
        DetectionError: a single one was asked for and cannot be used.
    """
    for model in models:
        for name in backends:
            if name != 'auto' and Path(model).suffix.lower() not in backend_class(name).suffixes:
                yield None, f'{model}: not a file of backend {name}'
                continue
            try:
                detector = Detector(name, model_path=model, **settings)
            except DetectionError as error:
                if len(models) * len(backends) == 1:
                    raise
                yield None, f'{model} on {name}: {error}'
            else:
                yield detector, ''


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """The results for people."""
    table = Table(title='milliseconds; stages: medians')
    for column in ('model', 'backend', 'input', 'avg', *(f'p{p}' for p in PERCENTILES)):
        table.add_column(column, justify='left' if column in ('model', 'backend') else 'right')
    for column in ('fps', 'cpu %', 'pre', 'infer', 'post', 'bare p50', 'ratio', 'x ultra'):
        table.add_column(column, justify='right')
    faster = 'times_faster_than_ultralytics'
    for result in results:
        table.add_row(
            result['model'],
            f'{result["backend"]} {result["device"]}',
            'x'.join(map(str, result['input_hw'])),
            *(f'{value:.1f}' for value in result['latency_ms'].values()),
            f'{result["fps"]:.1f}',
            f'{result["cpu_percent"]:.0f}',
            *(f'{result["stages_ms"][stage]["p50"]:.2f}' for stage in STAGES),
            f'{result["bare_run_ms"]["p50"]:.1f}' if 'ratio' in result else '-',
            f'{result["ratio"]:.3f}' if 'ratio' in result else '-',
            f'{result[faster]:.2f}' if faster in result else '-',
        )
    # A pipe has no width: a table that is cut there would lose its last columns.
    Console(width=None if sys.stdout.isatty() else 170).print(table)


def first_image(source_uri: str | None, synthetic_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The source's first frame, or without a source an image of noise."""
    if source_uri is None:
        random = np.random.default_rng(0)
        return random.integers(0, 256, (*synthetic_hw, 3), np.uint8)
    with open_source(source_uri) as source:
        return next(source).image.copy()


@command('benchmark')
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', nargs='+', required=True, help='model files')
    parser.add_argument('--backend', nargs='+', default=['auto'], help='one or several')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--source', help='image, video, ... whose first frame is used')
    parser.add_argument(
        '--frame-size', type=parse_size, default=(1280, 720), help='of the noise without --source'
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
    parser.add_argument(
        '--ultralytics', action='store_true', help="compare with Ultralytics' predict"
    )
    parser.add_argument(
        '--auto-trials',
        type=int,
        default=0,
        metavar='N',
        help='load each model N times with `auto` and compare its choices with --backend',
    )
    parser.add_argument(
        '--json',
        type=Path,
        default=Path('benchmark_results.json'),
        help='file for the figures; the plot is beside it',
    )
    options = parser.parse_args(arguments)
    image = first_image(options.source, options.frame_size[::-1])
    settings = {
        'device': options.device,
        'image_size': options.imgsz,
        'threads': options.threads,
        'spin': options.spin,
    }
    with contextlib.ExitStack() as stack:
        detectors = []
        for detector, why_not in open_detectors(options.model, options.backend, **settings):
            if detector is None:
                print(f'benchmark: left out: {why_not}', file=sys.stderr)
            else:
                detectors.append(stack.enter_context(detector))
        if not detectors:
            raise BenchmarkError('nothing can be measured')
        results = benchmark(
            detectors,
            image,
            runs=options.runs,
            warm_up=options.warm_up,
            batch=options.batch,
            compare_ultralytics=options.ultralytics,
        )
        report = {'machine': machine(), 'frame_hw': image.shape[:2], 'results': results}
    print_table(results)
    if options.auto_trials > 0:
        report['auto'] = judge_auto(results, options.model, trials=options.auto_trials, **settings)
        for item in report['auto']:
            choices = ', '.join(f'{name} {count} x' for name, count in item['chosen'].items())
            print(
                f'auto, {item["model"]}: {choices}; over the fastest by medians '
                f'{item["latency_ratio_mean"]:.3f} (worst {item["latency_ratio_worst"]:.3f}), by '
                f'processor time {item["cpu_ratio_mean"]:.3f} '
                f'(worst {item["cpu_ratio_worst"]:.3f}); loaded in {item["load_s"]:.1f} s'
            )
    text = json.dumps(report, indent=2) + '\n'
    write_whole(options.json, lambda path: path.write_text(text))
    write_whole(options.json.with_suffix('.png'), lambda path: write_plot(results, path))
    return 0


if __name__ == '__main__':
    sys.exit(main())
