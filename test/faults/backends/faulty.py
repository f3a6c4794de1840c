"""An engine that does what engines do on a bad day, as the brightness of the image asks."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_perception.detection.backends.base import Backend, TensorSpec

SIZE = 64
RAISES = 0
SLOW = 50
HANGS = 255
SLOW_S = 0.2


class FaultyBackend(Backend):
    """One box in the middle of every image of another brightness."""

    name: ClassVar[str] = 'faulty'
    suffixes: ClassVar[tuple[str, ...]] = ('.faulty',)

    @property
    def device(self) -> str:
        """The device in use."""
        return 'cpu'

    @property
    def input_spec(self) -> TensorSpec:
        """The image input."""
        return TensorSpec('images', np.dtype(np.float32), (1, 3, SIZE, SIZE))

    @property
    def metadata(self) -> dict[str, str]:
        """One class."""
        return {'names': "{0: 'person'}", 'task': 'detect'}

    def activate(self) -> None:
        """Nothing to load."""

    def close(self) -> None:
        """Nothing to free."""

    def infer(self, blob: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Look at the middle of the image."""
        level = round(float(blob[0, 0, SIZE // 2, SIZE // 2]) * 255)
        if level == RAISES:
            raise RuntimeError('the device fell off the bus')
        if level == SLOW:
            threading.Event().wait(SLOW_S)
        if level == HANGS:
            threading.Event().wait()
        output = np.zeros((1, 5, 84), np.float32)
        output[0, :, 0] = SIZE / 2, SIZE / 2, 10, 20, 0.9
        return [output]
