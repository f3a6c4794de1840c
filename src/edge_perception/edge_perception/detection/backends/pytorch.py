"""PyTorch: Ultralytics checkpoints (.pt), loaded by ultralytics and run without its pipeline."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_perception.detection.backends.base import Backend, TensorSpec
from edge_perception.detection.errors import BackendError, ModelFileError, first_line


class PyTorchBackend(Backend):
    """An Ultralytics checkpoint in PyTorch, layers fused, memory in channels-last order.

    On a GPU it computes in FP16, which its tensor cores are made for.

    A bare name such as `yolov8n.pt` that is not a file is left to ultralytics, which downloads
    its official weights where there is a network. Loading a checkpoint runs code from it (it is a
    pickle): use only files whose origin you trust.
    """

    name: ClassVar[str] = 'pytorch'
    suffixes: ClassVar[tuple[str, ...]] = ('.pt',)
    preference: ClassVar[int] = 10

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str = 'auto',
        threads: int | None = None,
        spin: bool | None = None,
    ) -> None:
        """See Backend. `threads` holds for all of PyTorch in this process."""
        super().__init__(model_path, device=device, threads=threads, spin=spin)
        self._model: Any = None
        self._torch: Any = None
        self._device = ''
        self._metadata: dict[str, str] = {}

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Why PyTorch or ultralytics cannot be used here, None if they can."""
        for package in ('torch', 'ultralytics'):
            if importlib.util.find_spec(package) is None:
                return f'{package} is not installed (pip install {package})'
        return None

    @property
    def device(self) -> str:
        """`cpu` or `cuda:INDEX`."""
        if self._model is None:
            raise self._not_active()
        return self._device

    @property
    def input_spec(self) -> TensorSpec:
        """The image input: all axes but the channels are dynamic."""
        if self._model is None:
            raise self._not_active()
        return TensorSpec('images', np.dtype(np.float32), (None, 3, None, None))

    @property
    def metadata(self) -> dict[str, str]:
        """Names, stride, task and image size from the checkpoint, in the text form of exports."""
        if self._model is None:
            raise self._not_active()
        return dict(self._metadata)

    def activate(self) -> None:
        """Load the checkpoint onto the device.

        Raises:
            ModelFileError: missing, corrupt, or no Ultralytics checkpoint.
            BackendError: PyTorch or ultralytics is missing, or the device is not there.
        """
        if self._model is not None:
            return
        is_bare_name = self.model_path.name == str(self.model_path)
        if not is_bare_name or self.model_path.is_file():
            self._require_file()
        self._require_engine()
        # Loading a model must never install packages into the running environment.
        os.environ.setdefault('YOLO_AUTOINSTALL', 'false')
        import torch
        from ultralytics import YOLO

        device = self._choose_device(torch)
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            wrapper = YOLO(str(self.model_path))
            model = wrapper.model.float()
            metadata = {
                'names': repr(dict(wrapper.names)),
                'task': str(wrapper.task),
                'stride': str(int(max(model.stride))),
                'imgsz': repr(getattr(model, 'args', {}).get('imgsz', 640)),
                'end2end': str(bool(getattr(model, 'end2end', False))),
            }
            model = model.fuse(verbose=False).eval()
        except Exception as error:
            if not self.model_path.is_file():
                raise ModelFileError(
                    f'model file not found and not to be downloaded by ultralytics: '
                    f'{self.model_path} (is there a network, and is it an official name?)'
                ) from error
            raise ModelFileError(
                f'cannot load {self.model_path} as an Ultralytics checkpoint: {first_line(error)}'
            ) from error
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self._torch = torch
        self._device = device
        self._metadata = metadata
        if device != 'cpu':
            model = model.half()
        self._model = model.to(device).to(memory_format=torch.channels_last)

    def infer(self, blob: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Run the network once; see Backend.infer."""
        if self._model is None:
            raise self._not_active()
        torch = self._torch
        try:
            with torch.inference_mode():
                images = torch.from_numpy(blob).to(self._device)
                if self._device != 'cpu':
                    images = images.half()
                output = self._model(images.contiguous(memory_format=torch.channels_last))
        except RuntimeError as error:
            raise BackendError(
                f'PyTorch failed on an input of shape {blob.shape}: {first_line(error)}'
            ) from error
        # In evaluation mode the head returns the decoded boxes first, raw feature maps after.
        boxes = output[0] if isinstance(output, (tuple, list)) else output
        return [boxes.float().cpu().numpy()]

    def close(self) -> None:
        """Free the model."""
        self._model = None
        if self._torch is not None and self._device.startswith('cuda'):
            self._torch.cuda.empty_cache()

    def _choose_device(self, torch: Any) -> str:
        kind, index = self._requested_kind()
        usable = torch.cuda.is_available()
        if kind == 'cuda' and not usable:
            raise BackendError('device cuda: PyTorch sees no usable GPU here')
        if kind == 'cpu' or not usable:
            return 'cpu'
        return f'cuda:{index}'
