"""Build a TensorRT engine from an ONNX file, for the GPU and the TensorRT of this machine.

    python model_tools/build_tensorrt.py --model models/person_416.onnx --precision fp16
    python model_tools/build_tensorrt.py --model models/person_416.onnx --precision int8 \\
        --calibration street.mp4 --min 1x3x320x320 --opt 1x3x416x416 --max 4x3x640x640

writes models/person_416.engine and person_416.engine.json, which says what it was built with. A
detector that is given the .onnx file with `backend: auto` finds the engine beside it. TensorRT up
to 10 is told the precision; TensorRT 11 takes it from the graph, so for it the graph is converted
here: FP16 by casts, INT8 by Q/DQ nodes (calibrate_int8.py).

TensorRT-RTX builds without a GPU; such an engine picks its kernels where it is loaded first.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import calibrate_int8
import half_precision
import numpy as np
from command_line import command, folder_beside, uninterrupted, write_whole
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from edge_perception.detection.backends.onnx import OnnxBackend
from edge_perception.detection.backends.tensorrt import (
    Gpu,
    import_tensorrt,
    open_gpu,
    tensorrt_label,
)
from edge_perception.detection.canvas import Canvas
from edge_perception.detection.decode import check_task
from edge_perception.detection.engine_file import (
    Sidecar,
    sha256_of,
    sidecar_path,
    sidecar_text,
    write_engine,
)
from edge_perception.detection.errors import BackendError
from edge_perception.detection.labels import labels_from_metadata
from edge_perception.types import EdgePerceptionError

PRECISIONS = ('fp32', 'fp16', 'int8')
Shape = tuple[int, int, int, int]


class BuildError(EdgePerceptionError):
    """No engine can be built as asked."""


@dataclass(frozen=True)
class Profile:
    """Input shapes (batch, channels, height, width) that an engine takes.

    Attributes:
        least: smallest of each axis.
        usual: what it is tuned for.
        greatest: largest of each axis.
    """

    least: Shape = (1, 3, 480, 480)
    usual: Shape = (1, 3, 640, 640)
    greatest: Shape = (4, 3, 1280, 1280)

    def __post_init__(self) -> None:
        for low, middle, high in zip(self.least, self.usual, self.greatest, strict=True):
            if not 0 < low <= middle <= high:
                raise BuildError(
                    f'profile: each of --min {show(self.least)}, --opt {show(self.usual)} and '
                    f'--max {show(self.greatest)} must be at least the one before'
                )


def show(shape: Sequence[int]) -> str:
    """`1x3x480x480`."""
    return 'x'.join(map(str, shape))


def profile_for(
    declared: Sequence[int | None],
    image_hw: tuple[int, int],
    *,
    least: Shape | None,
    usual: Shape | None,
    greatest: Shape | None,
) -> Profile:
    """What was asked for, completed by defaults that suit the model.

    Args:
        declared: the model's input shape; None is dynamic.
        image_hw: the input size that the detector is to use.
        least: as asked for, or None; likewise the others.
        usual: its default is the detector's own size.
        greatest: see `least`.

    Raises:
        BuildError: the model's shape is fixed to another one, or its own size is excluded.
    """
    defaults = Profile()
    fixed = [size if size is not None else 0 for size in declared]

    def complete(asked: Shape | None, default: Shape, pick: Callable[[int, int], int]) -> Shape:
        if asked is not None:
            return asked
        own = (default[0], 3, *image_hw)
        shape = [pick(a, b) for a, b in zip(default, own, strict=True)]
        return tuple(a or b for a, b in zip(fixed, shape, strict=True))  # type: ignore[return-value]

    low, high = complete(least, defaults.least, min), complete(greatest, defaults.greatest, max)
    if not all(a <= n <= b for a, n, b in zip(low, (1, 3, *image_hw), high, strict=True)):
        raise BuildError(
            f'the profile {show(low)} to {show(high)} excludes single images of the input size '
            f'{image_hw[0]}x{image_hw[1]} (height x width): change --min, --max or --imgsz'
        )
    profile = Profile(low, complete(usual, defaults.usual, lambda default, own: own), high)
    for shape in (profile.least, profile.usual, profile.greatest):
        if any(size and size != asked for size, asked in zip(fixed, shape, strict=True)):
            raise BuildError(
                f'the model has the fixed input shape {show(fixed)}, not {show(shape)}: '
                f'export it dynamic or leave --min, --opt and --max out'
            )
    return profile


def build_engine(
    model: Path,
    out: Path,
    *,
    precision: str = 'fp16',
    image_size: int | None = None,
    least: Shape | None = None,
    usual: Shape | None = None,
    greatest: Shape | None = None,
    int8_method: str = 'auto',
    source_uri: str | None = None,
    count: int = 100,
    workspace_mib: int = 2048,
    timing_cache: Path | None = None,
    command: str = '',
) -> Sidecar:
    """Build an engine and its sidecar: both, or neither.

    Args:
        model: ONNX file of a detector, FP32.
        out: the .engine file to write.
        precision: one of PRECISIONS.
        image_size: input size in pixels that the detector will use; None: the model's.
        least: smallest input shape; None: a default that suits the model. Likewise the next two.
        usual: the shape to tune for.
        greatest: largest input shape.
        int8_method: one of calibrate_int8.INT8_METHODS.
        source_uri: calibration images, for INT8.
        count: how many of them at most.
        workspace_mib: memory of the GPU that a layer may use while it runs.
        timing_cache: file of measured kernel times, which makes further builds short.
        command: what builds the engine again, for its sidecar.

    Returns:
        The sidecar.

    Raises:
        BuildError: a wrong argument, or TensorRT cannot build it.
        OutputError: the engine cannot be written.
        EdgePerceptionError: model or images cannot be used.
    """
    if out.suffix != '.engine':
        raise BuildError(f'{out}: the name must end in .engine')
    if precision == 'int8' and source_uri is None:
        raise BuildError('INT8 needs --calibration')
    with OnnxBackend(model, device='cpu') as backend:
        metadata, spec = backend.metadata, backend.input_spec
    check_task(metadata)
    image_hw = Canvas.of(spec, metadata, image_size).image_hw
    profile = profile_for(spec.shape, image_hw, least=least, usual=usual, greatest=greatest)
    trt = import_tensorrt()
    blobs: list[NDArray[np.float32]] = []
    if precision == 'int8' and source_uri is not None:
        blobs = calibrate_int8.load_inputs(model, source_uri, count)
    with folder_beside(out, '.build-') as folder, _gpu_here() as gpu:
        method = ''
        if precision == 'int8':
            method = calibrate_int8.choose_method(int8_method, trt, gpu)
        graph = _graph_for(trt, model, folder / 'graph.onnx', precision, method, blobs)
        plan = _build(
            trt,
            gpu,
            graph,
            spec.name,
            profile,
            precision=precision,
            method=method,
            blobs=blobs,
            model=model,
            workspace_mib=workspace_mib,
            timing_cache=timing_cache,
        )
        made = folder / out.name
        write_engine(made, plan, {**metadata, 'imgsz': repr(list(image_hw))})
        labels = labels_from_metadata(metadata) or {}
        sidecar = Sidecar(
            tensorrt=tensorrt_label(trt),
            gpu=gpu.name if gpu else '',
            compute_capability=gpu.compute_capability if gpu else '',
            onnx_name=model.name,
            onnx_sha256=sha256_of(model),
            engine_sha256=sha256_of(made),
            precision=precision,
            int8_method=method,
            profile={
                'min': list(profile.least),
                'opt': list(profile.usual),
                'max': list(profile.greatest),
            },
            labels={str(key): name for key, name in labels.items()},
            command=command,
        )
        beside = sidecar_path(made)
        beside.write_text(sidecar_text(sidecar))
        # An engine with the sidecar of an older one is refused, so the order does not matter
        # to safety, and a new sidecar without its engine is never looked at.
        os.replace(beside, sidecar_path(out))
        os.replace(made, out)
    return sidecar


@contextlib.contextmanager
def _gpu_here() -> Iterator[Gpu | None]:
    """The GPU with its context current, None where there is none."""
    try:
        gpu = open_gpu(0)
    except BackendError:
        yield None
        return
    gpu.push()
    try:
        yield gpu
    finally:
        gpu.release()
        gpu.pop()
        gpu.detach()


def _graph_for(
    trt: Any,
    model: Path,
    out: Path,
    precision: str,
    method: str,
    blobs: list[NDArray[np.float32]],
) -> Path:
    """The graph to build from: the model, or a copy that carries its precision."""
    if method == 'qdq':
        calibrate_int8.write_qdq(model, out, blobs)
        return out
    if precision == 'fp16' and not hasattr(trt.BuilderFlag, 'FP16'):
        half_precision.to_half(model, out)
        return out
    return model


def _build(
    trt: Any,
    gpu: Gpu | None,
    graph: Path,
    input_name: str,
    profile: Profile,
    *,
    precision: str,
    method: str,
    blobs: list[NDArray[np.float32]],
    model: Path,
    workspace_mib: int,
    timing_cache: Path | None,
) -> bytes:
    """The plan."""
    errors: list[str] = []

    class Logger(trt.ILogger):
        """Keeps what went wrong, for one line at the end."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        @uninterrupted
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    creation = trt.NetworkDefinitionCreationFlag
    # TensorRT 8 must be told what later ones take for granted.
    explicit = getattr(creation, 'EXPLICIT_BATCH', None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph.read_bytes()):
        found = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise BuildError(f'TensorRT cannot read {model}: {_one_line(found or errors)}')
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    shapes = builder.create_optimization_profile()
    shapes.set_shape(input_name, profile.least, profile.usual, profile.greatest)
    config.add_optimization_profile(shapes)
    if precision == 'fp16' and hasattr(trt.BuilderFlag, 'FP16'):
        config.set_flag(trt.BuilderFlag.FP16)
    if precision == 'int8' and hasattr(trt.BuilderFlag, 'INT8'):
        config.set_flag(trt.BuilderFlag.INT8)
        config.set_flag(trt.BuilderFlag.FP16)  # layers without INT8 kernels
    if method in ('entropy', 'minmax'):
        if gpu is None:
            raise BuildError(f'--int8-method {method} needs a GPU: use qdq')
        cache = calibrate_int8.cache_path(model.parent, model, blobs, trt, method)
        config.int8_calibrator = calibrate_int8.make_calibrator(trt, gpu, method, blobs, cache)
        config.set_calibration_profile(shapes)
    # TensorRT-RTX measures nothing while it builds, and warns about the cache.
    keep_times = timing_cache is not None and 'rtx' not in trt.__name__
    if keep_times and timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b''
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    with Progress(console=Console(stderr=True)) as shown:
        monitor = _monitor(trt, shown)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise BuildError(f'TensorRT cannot build {model}: {_one_line(errors)}')
    if keep_times and timing_cache is not None:
        times = bytes(config.get_timing_cache().serialize())
        write_whole(timing_cache, lambda path: path.write_bytes(times))
    return bytes(plan)


def _monitor(trt: Any, shown: Progress) -> Any:
    """TensorRT's progress as a bar, which also lets Ctrl-C through."""

    class Monitor(trt.IProgressMonitor):
        """One bar for each phase."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._tasks: dict[str, Any] = {}

        @uninterrupted
        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._tasks[name] = shown.add_task(name, total=steps)

        def step_complete(self, name: str, step: int) -> bool:
            try:
                shown.update(self._tasks[name], completed=step)
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        @uninterrupted
        def phase_finish(self, name: str) -> None:
            task = self._tasks.pop(name, None)
            if task is not None:
                shown.remove_task(task)

    return Monitor()


def _one_line(messages: Sequence[str]) -> str:
    """The first message without line breaks, cut to what fits a terminal."""
    text = ' '.join(messages[0].split()) if messages else 'it does not say why'
    return text if len(text) <= 200 else f'{text[:200]}...'


def parse_shape(text: str) -> Shape:
    """`1x3x480x480`: batch, channels, height, width."""
    if not re.fullmatch(r'\d+x3x\d+x\d+', text):
        raise argparse.ArgumentTypeError(f'{text!r} is no shape such as 1x3x480x480')
    batch, channels, height, width = map(int, text.split('x'))
    return batch, channels, height, width


@command('build_tensorrt')
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', required=True, type=Path, help='FP32 .onnx file')
    parser.add_argument('--out', type=Path, help='default: the model with .engine at its end')
    parser.add_argument('--precision', choices=PRECISIONS, default='fp16')
    parser.add_argument('--imgsz', type=int, help='input size in pixels that will be used')
    parser.add_argument('--min', type=parse_shape, help='default 1x3x480x480, or the model size')
    parser.add_argument('--opt', type=parse_shape, help='default: 1x3 and the model size')
    parser.add_argument('--max', type=parse_shape, help='default 4x3x1280x1280')
    parser.add_argument('--int8-method', choices=calibrate_int8.INT8_METHODS, default='auto')
    parser.add_argument('--calibration', help='video, bag or folder of images, for INT8')
    parser.add_argument('--count', type=int, default=100, help='of calibration images')
    parser.add_argument('--workspace', type=int, default=2048, help='MiB a layer may use')
    parser.add_argument('--timing-cache', type=Path, help='file that speeds up further builds')
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    out = options.out or options.model.with_suffix('.engine')
    sidecar = build_engine(
        options.model,
        out,
        precision=options.precision,
        image_size=options.imgsz,
        least=options.min,
        usual=options.opt,
        greatest=options.max,
        int8_method=options.int8_method,
        source_uri=options.calibration,
        count=options.count,
        workspace_mib=options.workspace,
        timing_cache=options.timing_cache,
        command=shlex.join(['python', 'model_tools/build_tensorrt.py', *given]),
    )
    shapes = ', '.join(f'{name} {show(shape)}' for name, shape in sidecar.profile.items())
    where = sidecar.gpu or 'whichever GPU loads it'
    print(
        f'{out}: {out.stat().st_size / 1e6:.1f} MB, {sidecar.precision}, {shapes}; '
        f'{sidecar.tensorrt}, for {where}'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
