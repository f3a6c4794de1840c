"""How large the network's input is: from the model, its metadata, and what the user asks for."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_perception.detection.backends.base import TensorSpec
from edge_perception.detection.errors import InputSizeError

DEFAULT_STRIDE = 32
DEFAULT_IMAGE_SIZE = 640
LARGEST_SIDE = 1 << 16


@dataclass(frozen=True)
class Canvas:
    """The image input of a network.

    Attributes:
        image_hw: height and width in pixels that frames are fitted into.
        stride: sizes are multiples of it.
        rectangular: whether the canvas may shrink to the fitted frame.
        smallest_hw: what it may shrink to at most.
    """

    image_hw: tuple[int, int]
    stride: int
    rectangular: bool
    smallest_hw: tuple[int, int] = (0, 0)

    @classmethod
    def of(
        cls, spec: TensorSpec, metadata: Mapping[str, str], asked: int | tuple[int, int] | None
    ) -> Canvas:
        """The canvas of a model.

        Args:
            spec: the model's input.
            metadata: of the model.
            asked: long side or (height, width) in pixels; None for what the model says.

        Raises:
            InputSizeError: the asked size is not the model's fixed one, or outside its limits.
        """
        stated = metadata.get('stride', '')
        is_number = stated.isdecimal() and len(stated) <= 4
        stride = (int(stated) if is_number else 0) or DEFAULT_STRIDE
        height, width = spec.shape[spec.height_axis], spec.shape[spec.height_axis + 1]
        wanted = _size_hw(asked if asked is not None else metadata.get('imgsz'))
        if height is not None and width is not None:
            if asked is not None and wanted != (height, width):
                raise InputSizeError(
                    f'the model has the fixed input size {height}x{width} (height x width), '
                    f'not {wanted[0]}x{wanted[1]}: leave image_size unset or export it dynamic'
                )
            return cls((height, width), 1, False)
        image_hw = (height or wanted[0], width or wanted[1])
        smallest_hw = (0, 0)
        if spec.smallest is not None and spec.largest is not None:
            axes = slice(spec.height_axis, spec.height_axis + 2)
            low, high = spec.smallest[axes], spec.largest[axes]
            if any(not a <= n <= b for a, n, b in zip(low, image_hw, high, strict=True)):
                raise InputSizeError(
                    f'input size {image_hw[0]}x{image_hw[1]} (height x width) is outside the '
                    f'profile of the engine, {low[0]}x{low[1]} to {high[0]}x{high[1]}: choose an '
                    f'image_size within it, or build it again with other --min and --max'
                )
            smallest_hw = (low[0], low[1])
        return cls(image_hw, stride, height is None and width is None, smallest_hw)


def _size_hw(size: Any) -> tuple[int, int]:
    """Height and width of an int, a pair, or their text in metadata.

    Metadata that says something else, or nothing, leaves the default.

    Raises:
        InputSizeError: a size that was asked for is no size.
    """
    asked = size
    if isinstance(size, str):
        try:
            size = ast.literal_eval(size)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            size = None
    if isinstance(size, int):
        size = (size, size)
    if isinstance(size, (list, tuple)) and len(size) in (1, 2):
        height, width = size[0], size[-1]
        if all(isinstance(side, int) and 0 < side <= LARGEST_SIDE for side in (height, width)):
            return height, width
    if asked is not None and not isinstance(asked, str):
        raise InputSizeError(
            f'image_size {asked!r} is no size: use the longer side, or (height, width), in pixels'
        )
    return DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE
