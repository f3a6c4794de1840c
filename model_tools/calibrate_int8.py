"""Find the INT8 ranges of a model for TensorRT.

    python model_tools/calibrate_int8.py --model models/person_416.onnx --calibration street.mp4

build_tensorrt.py does this by itself; alone it serves to make the file on a desktop that a small
computer then builds from. What comes out depends on --int8-method and on the TensorRT here:

- `qdq`: models/person_416.trt_int8.onnx, a graph with quantise and dequantise nodes. Every
  TensorRT since 8 takes it, and TensorRT 11 takes nothing else. Needs no GPU.
- `entropy`, `minmax`: a cache of ranges, found by TensorRT's own calibrators on the GPU; TensorRT
  up to 10 only. Its name is made of the model's hash, the images' hash and TensorRT's version, so
  that a cache is never used for anything else.
- `auto`: the MinMax calibrator where TensorRT has one and there is a GPU for it to run on, else
  the Q/DQ graph. Detectors lose less with MinMax than with the entropy calibrator.

Alone this command writes the Q/DQ graph: a cache of ranges is of use only to the build that
follows at once, on the same GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import calibration
import numpy as np
from command_line import command, folder_beside, write_whole
from numpy.typing import NDArray
from rich.console import Console

from edge_perception.detection import Detector
from edge_perception.detection.backends.tensorrt import Gpu, tensorrt_label
from edge_perception.detection.engine_file import sha256_of
from edge_perception.types import EdgePerceptionError

INT8_METHODS = ('auto', 'entropy', 'minmax', 'qdq')


class CalibrateError(EdgePerceptionError):
    """The ranges cannot be found as asked."""


def choose_method(method: str, trt: Any, gpu: Gpu | None) -> str:
    """`qdq`, `entropy` or `minmax`, of what this TensorRT has.

    Args:
        method: one of INT8_METHODS.
        trt: the TensorRT module.
        gpu: what a calibrator would run on; None where there is none.

    Raises:
        CalibrateError: this TensorRT has no calibrators.
    """
    if method == 'auto':
        able = gpu is not None and hasattr(trt, 'IInt8MinMaxCalibrator')
        return 'minmax' if able else 'qdq'
    if method != 'qdq' and not hasattr(trt, 'IInt8EntropyCalibrator2'):
        raise CalibrateError(
            f'{tensorrt_label(trt)} has no calibrators any more: use --int8-method qdq'
        )
    return method


def load_inputs(model: Path, source_uri: str, count: int) -> list[NDArray[np.float32]]:
    """Calibration images as the network's inputs.

    Raises:
        EdgePerceptionError: model or images cannot be used.
    """
    with Detector('onnx', model_path=model, device='cpu') as detector:
        image_hw = detector.image_hw
    return calibration.network_inputs(calibration.read_images(source_uri, count), image_hw)


def cache_path(
    folder: Path, model: Path, blobs: list[NDArray[np.float32]], trt: Any, method: str
) -> Path:
    """Where the ranges of this model on these images with this TensorRT are kept."""
    version = tensorrt_label(trt).replace(' ', '-')
    hashes = f'{sha256_of(model)[:16]}-{calibration.data_hash(blobs)[:16]}'
    return folder / f'{model.stem}-{hashes}-{version}-{method}.cache'


def make_calibrator(
    trt: Any, gpu: Gpu, method: str, blobs: list[NDArray[np.float32]], cache: Path
) -> Any:
    """A calibrator of TensorRT up to 10, whose GPU context is current while it is used."""
    base: Any = {
        'entropy': getattr(trt, 'IInt8EntropyCalibrator2', None),
        'minmax': getattr(trt, 'IInt8MinMaxCalibrator', None),
    }[method]
    if base is None:
        raise CalibrateError(f'{tensorrt_label(trt)} has no {method} calibrator')

    class Calibrator(base):
        """Feeds the images one by one and keeps the result in a file."""

        def __init__(self) -> None:
            super().__init__()
            self._waiting = iter(blobs)
            gpu.stream()
            self._address = gpu.allocate(blobs[0].nbytes)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: Sequence[str]) -> list[int] | None:
            blob = next(self._waiting, None)
            if blob is None:
                return None
            gpu.to_device(self._address, blob)
            gpu.synchronize()
            return [self._address]

        def read_calibration_cache(self) -> bytes | None:
            return cache.read_bytes() if cache.is_file() else None

        def write_calibration_cache(self, content: Any) -> None:
            write_whole(cache, lambda path: path.write_bytes(bytes(content)))

    return Calibrator()


def write_qdq(model: Path, out: Path, blobs: list[NDArray[np.float32]]) -> None:
    """Write the Q/DQ graph for TensorRT, with the model's metadata: whole, or not at all.

    Raises:
        OutputError: it cannot be written.
        CalibrationError: the model cannot be quantised.
    """
    import onnx

    with folder_beside(out, '.calibrate-') as folder:
        made = folder / 'model.onnx'
        calibration.quantize(model, made, blobs, target='tensorrt')
        graph = onnx.load(made)
        metadata = {item.key: item.value for item in onnx.load(model).metadata_props}
        onnx.helper.set_model_props(graph, {**metadata, 'precision': 'int8'})
        onnx.save(graph, made)
        os.replace(made, out)


@command('calibrate_int8')
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', required=True, type=Path, help='FP32 .onnx file')
    parser.add_argument('--calibration', required=True, help='video, bag or folder of images')
    parser.add_argument('--count', type=int, default=100, help='of images')
    parser.add_argument('--out', type=Path, help='default: the model with .trt_int8.onnx')
    options = parser.parse_args(arguments)
    out = options.out or options.model.with_suffix('.trt_int8.onnx')
    with Console(stderr=True).status(f'{options.model} to {out}'):
        blobs = load_inputs(options.model, options.calibration, options.count)
        write_qdq(options.model, out, blobs)
    print(f'{out}: ranges from {len(blobs)} images')
    return 0


if __name__ == '__main__':
    sys.exit(main())
