"""Which backend runs a model: the one asked for, or the fastest that works here.

`auto` goes down this list and says in its reason what it left out:

1. a TensorRT engine: the file itself, or one beside the .onnx file that was built from it;
2. ONNX Runtime where it has a GPU;
3. on the CPU, of the backends that read the file, the one that a few inferences show to be the
   fastest. Which it is depends on the model and on the processor's vector units: of ONNX Runtime
   and OpenVINO either may win by half, so no rule would hold. It takes about a second at most.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_perception.detection.backends import (
    Backend,
    backend_class,
    backends_for_file,
)
from edge_perception.detection.canvas import Canvas
from edge_perception.detection.engine_file import read_sidecar, sha256_of
from edge_perception.detection.errors import BackendError, DetectionError, ModelFileError
from edge_perception.detection.preprocess import PAD_VALUE

MEASURE_S = 0.8
"""Most time for the comparison of CPU backends, after one inference of each to warm up."""
LEAST_ROUNDS = 2
"""Inferences of each, however long they take."""
MOST_ROUNDS = 40
"""So many are enough, however short they are."""
REPEATS_WITHIN = 1.05
"""A duration that comes twice within this is that of the backend, not of what else runs."""
BUSY_SHARE = 0.75
"""Least processor time of an undisturbed inference, as part of its duration and for each thread;
of more than two threads not all need work all the while."""
EQUAL_WITHIN = 1.03
"""Times that differ by less are noise: the backend of higher preference is taken."""
ENGINE_SUFFIX = '.engine'


def activate_backend(
    name: str,
    model_path: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> tuple[Backend, str]:
    """Load a model on the backend asked for, or on the best one.

    Args:
        name: a backend's name, or `auto`.
        model_path: the model file.
        image_size: as the detector is to use it, for the comparison.
        options: of the backends: device, threads, spin.

    Returns:
        The active backend, and one line that says why it is this one.

    Raises:
        DetectionError: a subclass of it for each cause.
    """
    path = Path(model_path)
    if name != 'auto':
        chosen = backend_class(name)
        if path.suffix.lower() not in chosen.suffixes:
            raise ModelFileError(
                f'backend {name} reads {" ".join(chosen.suffixes)}, not {model_path}'
            )
        backend = chosen(model_path, **options)
        backend.activate()
        return backend, f'{name} on {backend.device}: as asked for'
    refusals: list[str] = []
    for candidate in _candidates(path, refusals):
        found = _activate_best(candidate, refusals, image_size, options)
        if found is not None:
            backend, why = found
            reason = f'{backend.name} on {backend.device}: {why}'
            return backend, '; '.join([reason, *refusals])
    raise BackendError(f'no backend can run {model_path} here: {"; ".join(refusals)}')


def _candidates(path: Path, refusals: list[str]) -> Sequence[str | Path]:
    """The files that hold this model, the preferred one first."""
    if path.suffix.lower() == ENGINE_SUFFIX and path.is_file():
        sidecar = read_sidecar(path)
        source = path.with_name(sidecar.onnx_name) if sidecar else path.with_suffix('.onnx')
        return [path, source] if source.is_file() else [path]
    engine = path.with_suffix(ENGINE_SUFFIX)
    if path.suffix.lower() == '.onnx' and path.is_file() and engine.is_file():
        sidecar = read_sidecar(engine)
        if sidecar is None or sidecar.onnx_sha256 != sha256_of(path):
            refusals.append(f'not {engine.name}: it was not built from this {path.name}')
        else:
            return [engine, path]
    return [path]


def _activate_best(
    path: str | Path,
    refusals: list[str],
    image_size: int | tuple[int, int] | None,
    options: dict[str, Any],
) -> tuple[Backend, str] | None:
    """The best active backend for one file; None, with `refusals` longer, when none works.

    Raises:
        DetectionError: the file is at fault, not this machine.
    """
    active: list[Backend] = []
    faults: list[DetectionError] = []
    try:
        for candidate in backends_for_file(path):
            why_not = candidate.unavailable_reason()
            if why_not is None:
                backend = candidate(path, **options)
                try:
                    backend.activate()
                except BackendError as error:
                    why_not = str(error)
                except ModelFileError as error:
                    # Another engine may know an operator that this one lacks.
                    faults.append(error)
                    why_not = str(error)
                else:
                    active.append(backend)
                    if backend.device != 'cpu':
                        # No CPU comes near it, so nothing is to be compared.
                        break
            if why_not is not None:
                refusals.append(f'not {candidate.name}: {why_not}')
        if not active:
            if faults:
                raise faults[0]
            return None
        if active[-1].device != 'cpu' or len(active) == 1:
            for other in active[:-1]:
                other.close()
            return active[-1], f'reads {Path(path).suffix}'
        return _fastest(active, image_size)
    except BaseException:
        for backend in active:
            backend.close()
        raise


@dataclass
class _Runs:
    """Inferences of one backend in the comparison.

    Attributes:
        wall_s: how long each took.
        cpu_s: processor time of this process meanwhile, all threads together.
    """

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def add(self, backend: Backend, blob: NDArray[Any]) -> None:
        """Infer once."""
        cpu_s, start_s = time.process_time(), time.perf_counter()
        backend.infer(blob)
        self.wall_s.append(time.perf_counter() - start_s)
        self.cpu_s.append(time.process_time() - cpu_s)

    @property
    def least_s(self) -> float:
        """The fastest run."""
        return min(self.wall_s)

    def undisturbed(self, threads: int) -> bool:
        """Whether nothing else held up the fastest run: it repeats, and its threads all worked."""
        fastest = int(np.argmin(self.wall_s))
        parallel = BUSY_SHARE * min(threads, 2)
        return (
            sum(wall_s <= REPEATS_WITHIN * self.least_s for wall_s in self.wall_s) > 1
            and self.cpu_s[fastest] >= parallel * self.wall_s[fastest]
        )


def _fastest(
    backends: list[Backend], image_size: int | tuple[int, int] | None
) -> tuple[Backend, str]:
    """Let the backends infer in turns and keep the fastest.

    The fastest run is the one that other work on the machine disturbed least. It is over as soon
    as that of each was not disturbed at all, so that a busy machine takes longer than an idle one.

    Args:
        backends: active, the preferred one first.
        image_size: as the detector is to use it.
    """
    spec = backends[0].input_spec
    canvas = Canvas.of(spec, backends[0].metadata, image_size)
    grey = PAD_VALUE if spec.dtype == np.uint8 else PAD_VALUE / 255
    blob = np.full(spec.blob_shape(spec.shape[0] or 1, canvas.image_hw), grey, spec.dtype)
    attempts = {backend.name: _attempt(backend, blob) for backend in backends}
    failed = {name: error for name, error in attempts.items() if error is not None}
    able = [backend for backend in backends if backend.name not in failed]
    if not able:
        raise failed[backends[0].name]
    runs = {backend.name: _Runs() for backend in able}
    threads = backends[0].threads or os.cpu_count() or 1
    stop_s = time.perf_counter() + MEASURE_S
    for turn in range(MOST_ROUNDS):
        # Whoever follows another finds its threads still awake, so they change places.
        for backend in able if turn % 2 == 0 else reversed(able):
            runs[backend.name].add(backend, blob)
        quiet = all(item.undisturbed(threads) for item in runs.values())
        if quiet or (turn + 1 >= LEAST_ROUNDS and time.perf_counter() > stop_s):
            break
    limit_s = EQUAL_WITHIN * min(item.least_s for item in runs.values())
    chosen = next(backend for backend in able if runs[backend.name].least_s <= limit_s)
    for backend in backends:
        if backend is not chosen:
            backend.close()
    height, width = canvas.image_hw
    told = [
        f'{runs[backend.name].least_s * 1e3:.1f} ms with {backend.name}'
        for backend in able
        if backend is not chosen
    ]
    told += [f'{name} failed: {error}' for name, error in failed.items()]
    own = f'{runs[chosen.name].least_s * 1e3:.1f} ms an inference at {height}x{width}'
    busy = '' if quiet else ' (at best: the machine is busy)'
    return chosen, f'the fastest here, {own}, {", ".join(told)}{busy}'


def _attempt(backend: Backend, blob: NDArray[Any]) -> BackendError | None:
    """Infer once; the error if it fails."""
    try:
        backend.infer(blob)
    except BackendError as error:
        return error
    return None
