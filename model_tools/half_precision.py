"""FP16 graphs: weights and features in half precision, boxes still computed in single."""

from __future__ import annotations

from pathlib import Path

from calibration import decode_nodes


def to_half(model: Path, out: Path) -> None:
    """Write a copy of an ONNX file in FP16, with its inputs and outputs as they were.

    What turns features into boxes stays FP32: from 1024 on, FP16 knows whole pixels only.

    Raises:
        OSError: the file cannot be written; whoever calls removes what was.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph = onnx.load(model)
    half = convert_float_to_float16(
        graph, keep_io_types=True, node_block_list=decode_nodes(graph.graph)
    )
    onnx.save(half, out)
