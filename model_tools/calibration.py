"""Images that show a network the range of its values, and INT8 graphs made with them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_perception.detection.preprocess import Preprocessor
from edge_perception.media import open_source
from edge_perception.types import EdgePerceptionError

TARGETS = ('cpu', 'tensorrt')
METHODS = ('minmax', 'entropy')


class CalibrationError(EdgePerceptionError):
    """There are no images, or no INT8 graph can be made of this model."""


def read_images(source_uri: str, count: int) -> list[NDArray[np.uint8]]:
    """Up to `count` frames, spread evenly over a video, a bag or a folder of images.

    Raises:
        CalibrationError: there is not one.
        MediaError: the source cannot be read.
    """
    folder = Path(source_uri)
    if folder.is_dir() and not any(folder.iterdir()):
        raise CalibrationError(f'no calibration images: {source_uri} is empty')
    with open_source(source_uri) as source:
        step = max(1, (source.frame_count or count) // count)
        images: list[NDArray[np.uint8]] = []
        for index, frame in enumerate(source):
            if index % step == 0:
                images.append(frame.image.copy())
            if len(images) == count:
                break
    if not images:
        raise CalibrationError(f'no calibration images in {source_uri}')
    return images


def data_hash(blobs: list[NDArray[np.float32]]) -> str:
    """Hash of what the network is shown, in hexadecimal."""
    digest = hashlib.sha256()
    for blob in blobs:
        digest.update(repr(blob.shape).encode())
        digest.update(blob.tobytes())
    return digest.hexdigest()


def network_inputs(
    images: list[NDArray[np.uint8]], image_hw: tuple[int, int]
) -> list[NDArray[np.float32]]:
    """Images letterboxed as the Detector does, each (1, 3, H, W) float32 in [0, 1]."""
    preprocess = Preprocessor(image_hw)
    return [preprocess([image])[0].copy() for image in images]


def quantize(
    model: Path,
    out: Path,
    blobs: list[NDArray[np.float32]],
    *,
    target: str = 'cpu',
    method: str = 'minmax',
    reduce_range: bool | None = None,
) -> None:
    """Write a graph with quantise and dequantise nodes (QDQ) around its layers.

    What turns the network's features into boxes stays in floating point: its values span pixels
    and probabilities at once, which eight bits cannot hold.

    Args:
        model: FP32 ONNX file.
        out: file to write; whoever calls removes it after an error.
        blobs: inputs of the network.
        target: `cpu` (unsigned activations, every layer) or `tensorrt` (signed and symmetric,
            convolutions only: TensorRT takes no other form).
        method: how the range of a tensor follows from its values.
        reduce_range: weights of seven bits; None: where the processor has no VNNI instructions,
            whose predecessors overflow with eight.

    Raises:
        CalibrationError: onnxruntime cannot quantise the model.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """Hands the inputs over one by one."""

        def __init__(self, name: str) -> None:
            self._name = name
            self._blobs: Iterator[NDArray[np.float32]] = iter(blobs)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            blob = next(self._blobs, None)
            return None if blob is None else {self._name: blob}

    # It advises on standard error to do what is done here.
    logging.getLogger().setLevel(logging.ERROR)
    prepared = out.with_name(f'{out.stem}.prepared.onnx')
    try:
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        options: dict[str, Any] = {
            'activation_type': QuantType.QUInt8,
            'weight_type': QuantType.QInt8,
            'reduce_range': (not has_vnni()) if reduce_range is None else reduce_range,
        }
        if target == 'tensorrt':
            options = {
                'activation_type': QuantType.QInt8,
                'weight_type': QuantType.QInt8,
                'op_types_to_quantize': ['Conv'],
                'extra_options': {
                    'ActivationSymmetric': True,
                    'WeightSymmetric': True,
                    'QuantizeBias': False,
                },
            }
        quantize_static(
            str(prepared),
            str(out),
            Reader(graph.input[0].name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            calibrate_method=(
                CalibrationMethod.Entropy if method == 'entropy' else CalibrationMethod.MinMax
            ),
            nodes_to_exclude=decode_nodes(graph),
            **options,
        )
    except OSError:
        raise
    except Exception as error:  # onnxruntime raises plain Exception and ONNX its own
        raise CalibrationError(f'cannot quantise {model}: {" ".join(str(error).split())}') from (
            error
        )
    finally:
        prepared.unlink(missing_ok=True)


def decode_nodes(graph: Any) -> list[str]:
    """Names of the nodes after the network's last proper convolutions, up to the outputs.

    A detector's head ends in convolutions, and what follows turns their values into boxes. One
    convolution is part of that: the expectation over the bins of DFL (Li et al., "Generalized
    Focal Loss", arXiv:2006.04388), whose weights are 0, 1, 2 ...
    """
    import onnx

    weights = {item.name: item for item in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    found: dict[str, None] = {}
    waiting = [item.name for item in graph.output]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in found:
            continue
        if node.op_type == 'Conv':
            values = onnx.numpy_helper.to_array(weights[node.input[1]]).ravel()
            if not np.array_equal(values, np.arange(values.size)):
                continue
        found[node.name] = None
        waiting += node.input
    return list(found)


def has_vnni() -> bool:
    """Whether the processor multiplies eight-bit integers without overflow on the way."""
    try:
        flags = Path('/proc/cpuinfo').read_text()
    except OSError:
        return False
    return any(name in flags for name in ('avx512_vnni', 'avx_vnni', 'asimddp'))
