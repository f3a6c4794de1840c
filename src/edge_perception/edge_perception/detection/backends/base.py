"""What every inference backend offers to the detector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_perception.detection.errors import BackendError, ModelFileError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a network input.

    Attributes:
        name: the tensor's name in the model.
        dtype: element type.
        shape: one entry an axis in the order batch, channel, height, width, or with the channels
            last (NHWC); None is dynamic.
        smallest: least sizes of the axes where the engine has limits (a TensorRT profile).
        largest: greatest sizes, likewise.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    smallest: tuple[int, ...] | None = None
    largest: tuple[int, ...] | None = None

    @property
    def channels_last(self) -> bool:
        """Whether the axes are batch, height, width, channel."""
        return self.shape[3] == 3 and self.shape[1] != 3

    @property
    def height_axis(self) -> int:
        """Where the height stands; the width follows."""
        return 1 if self.channels_last else 2

    def blob_shape(self, batch: int, canvas_hw: tuple[int, int]) -> tuple[int, int, int, int]:
        """The shape of an input of that many images."""
        if self.channels_last:
            return batch, canvas_hw[0], canvas_hw[1], 3
        return batch, 3, canvas_hw[0], canvas_hw[1]


class Backend(ABC):
    """One model on one inference engine; memory of the device lives only in here.

    A backend is made cheaply, loads its model in `activate` and frees it in `close`; as a context
    manager it does both. `infer` may be called from one thread at a time.

    Attributes:
        name: how a user selects this backend.
        suffixes: file name endings that it reads, lower case.
        preference: among the backends that read a file, `auto` tries the highest first.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    preference: ClassVar[int] = 0

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str = 'auto',
        threads: int | None = None,
        spin: bool | None = None,
    ) -> None:
        """Remember what to load; nothing is opened yet.

        Args:
            model_path: the model file.
            device: `auto`, `cpu`, `cuda` or `cuda:INDEX`.
            threads: CPU threads for one inference; None leaves it to the engine.
            spin: whether idle inference threads wait actively for work: a little faster alone,
                costly beside other work. None leaves it to the engine; engines without such a
                switch ignore it.
        """
        self.model_path = Path(model_path)
        self.requested_device = device
        self.threads = threads
        self.spin = spin

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Why this backend cannot be used on this machine, None if it can. Imports nothing."""
        return None

    @property
    @abstractmethod
    def device(self) -> str:
        """The device in use, `cpu` or `cuda:INDEX`; meaningful once active."""

    @property
    @abstractmethod
    def input_spec(self) -> TensorSpec:
        """The image input; meaningful once active."""

    @property
    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """What the model says of itself, as text: `names`, `stride`, `imgsz`, `task`, ..."""

    @abstractmethod
    def activate(self) -> None:
        """Load the model onto the device. Does nothing when already active.

        Raises:
            ModelFileError: the file is missing, corrupt or not of this engine.
            BackendError: the engine is not installed or cannot use the device.
        """

    @abstractmethod
    def infer(self, blob: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Run the network once.

        Args:
            blob: (B, 3, H, W), or (B, H, W, 3) where `input_spec` has the channels last, of its
                dtype, C-contiguous.

        Returns:
            The outputs in the model's order, float32. They stay valid until the next call.

        Raises:
            BackendError: the engine failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model and the device's memory. Does nothing when not active."""

    def __enter__(self) -> Self:
        self.activate()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _require_file(self) -> None:
        """Raise ModelFileError unless the model is a file with content."""
        if not self.model_path.is_file():
            raise ModelFileError(f'model file not found: {self.model_path}')
        if not self.model_path.stat().st_size:
            raise ModelFileError(f'model file is empty: {self.model_path}')

    def _require_engine(self) -> None:
        """Raise BackendError unless this backend can be used on this machine."""
        reason = self.unavailable_reason()
        if reason:
            raise BackendError(f'backend {self.name} cannot be used: {reason}')

    def _requested_kind(self) -> tuple[str, int]:
        """What `device` asks for: `auto`, `cpu` or `cuda`, and the index of the GPU.

        Raises:
            BackendError: it is none of these.
        """
        kind, colon, index = self.requested_device.partition(':')
        if kind not in ('auto', 'cpu', 'cuda') or (colon and not index.isdecimal()):
            raise BackendError(
                f'unknown device {self.requested_device!r}: use auto, cpu, cuda or cuda:INDEX'
            )
        return kind, int(index or 0)

    def _not_active(self) -> BackendError:
        return BackendError(f'backend {self.name} is not active: call activate() first')
