"""ONNX Runtime: .onnx files on the CPU, or on a GPU where its execution provider is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_perception.detection.backends.base import Backend, TensorSpec
from edge_perception.detection.errors import BackendError, ModelFileError, first_line

_DTYPES: dict[str, np.dtype[Any]] = {
    'tensor(float)': np.dtype(np.float32),
    'tensor(float16)': np.dtype(np.float16),
    'tensor(uint8)': np.dtype(np.uint8),
}


class OnnxBackend(Backend):
    """A model on ONNX Runtime.

    Inputs and outputs are plain arrays: I/O binding was measured on the CPU (YOLOv8n, 640) and
    gained nothing. `spin=False` costs such a model nothing either, while idle threads that spin
    take most of a core for another inference's time after each one: use it in a live graph.
    """

    name: ClassVar[str] = 'onnx'
    suffixes: ClassVar[tuple[str, ...]] = ('.onnx',)
    preference: ClassVar[int] = 10

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str = 'auto',
        threads: int | None = None,
        spin: bool | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        """See Backend.

        Args:
            model_path: the .onnx file.
            device: `auto` is CUDA where ONNX Runtime has it, else the CPU.
            threads: intra-op threads; None is one a physical core.
            spin: whether these threads spin while idle; None is the engine's default: they do.
            providers: execution providers in order of preference, instead of those that follow
                from `device`.
        """
        super().__init__(model_path, device=device, threads=threads, spin=spin)
        self.requested_providers = None if providers is None else list(providers)
        self._session: Any = None
        self._input_spec: TensorSpec | None = None
        self._output_names: list[str] = []

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Why ONNX Runtime cannot be used here, None if it can."""
        if importlib.util.find_spec('onnxruntime') is None:
            return 'onnxruntime is not installed (pip install onnxruntime)'
        return None

    @property
    def device(self) -> str:
        """`cpu` or `cuda:INDEX`, by the first execution provider in use."""
        if self._session is None:
            raise self._not_active()
        if self._session.get_providers()[0] == 'CPUExecutionProvider':
            return 'cpu'
        return f'cuda:{self._requested_kind()[1]}'

    @property
    def providers(self) -> list[str]:
        """The execution providers in use, first choice first."""
        if self._session is None:
            raise self._not_active()
        return list(self._session.get_providers())

    @property
    def session(self) -> Any:
        """The onnxruntime.InferenceSession, for measurements."""
        if self._session is None:
            raise self._not_active()
        return self._session

    @property
    def input_spec(self) -> TensorSpec:
        """The image input."""
        if self._input_spec is None:
            raise self._not_active()
        return self._input_spec

    @property
    def metadata(self) -> dict[str, str]:
        """The model's metadata_props."""
        if self._session is None:
            raise self._not_active()
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def activate(self) -> None:
        """Load the model.

        Raises:
            ModelFileError: missing, corrupt, or with inputs that no detector has.
            BackendError: no ONNX Runtime, or the execution provider is not there.
        """
        if self._session is not None:
            return
        self._require_file()
        self._require_engine()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Warnings of the engine go to stderr of the process and are of no use to a user.
        options.log_severity_level = 3
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if self.spin is not None:
            options.add_session_config_entry(
                'session.intra_op.allow_spinning', '1' if self.spin else '0'
            )
        providers = self._choose_providers(onnxruntime.get_available_providers())
        try:
            session = onnxruntime.InferenceSession(
                str(self.model_path), sess_options=options, providers=providers
            )
        except Exception as error:  # the engine's exception types have no common base
            raise ModelFileError(
                f'cannot load {self.model_path} as ONNX: {first_line(error)}'
            ) from error
        if self.requested_device.startswith('cuda') and 'CPU' in session.get_providers()[0]:
            raise BackendError(
                'device cuda: ONNX Runtime could not start CUDA (driver, CUDA or cuDNN missing)'
            )
        inputs = session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _DTYPES or len(inputs[0].shape) != 4:
            found = ', '.join(f'{item.name} {item.type} {item.shape}' for item in inputs)
            raise ModelFileError(
                f'{self.model_path} is no image detector: expected one 4-axis float or uint8 '
                f'input, found {found}'
            )
        self._input_spec = TensorSpec(
            inputs[0].name,
            _DTYPES[inputs[0].type],
            tuple(size if isinstance(size, int) else None for size in inputs[0].shape),
        )
        self._output_names = [item.name for item in session.get_outputs()]
        self._session = session

    def infer(self, blob: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Run the network once; see Backend.infer."""
        if self._session is None or self._input_spec is None:
            raise self._not_active()
        try:
            outputs = self._session.run(self._output_names, {self._input_spec.name: blob})
        except Exception as error:
            raise BackendError(
                f'ONNX Runtime failed on an input of shape {blob.shape}: {first_line(error)}'
            ) from error
        return [np.asarray(output, dtype=np.float32) for output in outputs]

    def close(self) -> None:
        """Free the session."""
        self._session = None
        self._input_spec = None

    def _choose_providers(self, available: Sequence[str]) -> list[Any]:
        """Execution providers for the session, from `device` or as asked for."""
        if self.requested_providers is not None:
            missing = [name for name in self.requested_providers if name not in available]
            if missing:
                raise BackendError(
                    f'ONNX Runtime here lacks {", ".join(missing)}: it has {", ".join(available)}'
                )
            return list(self.requested_providers)
        kind, index = self._requested_kind()
        if kind != 'cpu' and 'CUDAExecutionProvider' in available:
            cuda = ('CUDAExecutionProvider', {'device_id': index})
            return [cuda, 'CPUExecutionProvider']
        if kind == 'cuda':
            raise BackendError(
                'device cuda: this ONNX Runtime has no CUDA (pip install onnxruntime-gpu)'
            )
        return ['CPUExecutionProvider']
