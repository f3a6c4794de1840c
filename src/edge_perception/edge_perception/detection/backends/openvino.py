"""OpenVINO: .onnx files on the CPU, FP32 or quantised."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_perception.detection.backends.base import Backend, TensorSpec
from edge_perception.detection.errors import BackendError, ModelFileError, first_line

_DTYPES: dict[str, np.dtype[Any]] = {
    'f32': np.dtype(np.float32),
    'f16': np.dtype(np.float16),
    'u8': np.dtype(np.uint8),
}


class OpenVinoBackend(Backend):
    """A model on OpenVINO's CPU plugin, tuned for the latency of single inferences.

    It computes in FP32 like every other backend. Where the processor has BF16 (a 4th generation
    Xeon, a Zen 4) that is about twice as fast and moves boxes by up to some pixels, so only files
    that say in their metadata that they were tested with it (`precision: bf16`, written by
    model_tools/quantize_onnx.py) use it. Idle threads sleep, so `spin` has no meaning here.
    """

    name: ClassVar[str] = 'openvino'
    suffixes: ClassVar[tuple[str, ...]] = ('.onnx',)
    preference: ClassVar[int] = 5

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str = 'auto',
        threads: int | None = None,
        spin: bool | None = None,
        precision: str | None = None,
    ) -> None:
        """See Backend.

        Args:
            model_path: the .onnx file.
            device: `auto` or `cpu`.
            threads: of one inference; None is one a physical core.
            spin: ignored.
            precision: `f32` or `bf16`; None is what the file was tested with.
        """
        super().__init__(model_path, device=device, threads=threads, spin=spin)
        self._precision = precision
        self._request: Any = None
        self._compiled: Any = None
        self._input_spec: TensorSpec | None = None
        self._metadata: dict[str, str] = {}

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Why OpenVINO cannot be used here, None if it can."""
        if importlib.util.find_spec('openvino') is None:
            return 'openvino is not installed (pip install openvino)'
        return None

    @property
    def device(self) -> str:
        """`cpu`."""
        if self._request is None:
            raise self._not_active()
        return 'cpu'

    @property
    def precision(self) -> str:
        """What the engine computes in: `f32` or `bf16`."""
        if self._compiled is None:
            raise self._not_active()
        return str(self._compiled.get_property('INFERENCE_PRECISION_HINT').get_type_name())

    @property
    def compiled_model(self) -> Any:
        """The openvino.CompiledModel, for measurements."""
        if self._compiled is None:
            raise self._not_active()
        return self._compiled

    @property
    def input_spec(self) -> TensorSpec:
        """The image input."""
        if self._input_spec is None:
            raise self._not_active()
        return self._input_spec

    @property
    def metadata(self) -> dict[str, str]:
        """The model's metadata_props."""
        if self._request is None:
            raise self._not_active()
        return dict(self._metadata)

    def activate(self) -> None:
        """Load the model.

        Raises:
            ModelFileError: missing, corrupt, or with inputs that no detector has.
            BackendError: no OpenVINO, or another device than the CPU is asked for.
        """
        if self._request is not None:
            return
        self._require_file()
        self._require_engine()
        if self.requested_device not in ('auto', 'cpu'):
            raise BackendError(
                f'device {self.requested_device!r}: backend openvino runs on the CPU only'
            )
        # At its import OpenVINO reports to its makers from a forked child. The child of a process
        # with threads can hang for ever, and a robot reports to nobody. Without this package it
        # does neither.
        sys.modules.setdefault('openvino_telemetry', None)  # type: ignore[arg-type]
        import openvino

        settings: dict[str, Any] = {'PERFORMANCE_HINT': 'LATENCY'}
        if self.threads is not None:
            settings['INFERENCE_NUM_THREADS'] = self.threads
        core = openvino.Core()
        try:
            model = core.read_model(str(self.model_path))
            # The reader keeps metadata_props under the name of the format's family.
            metadata = {}
            if 'framework' in model.rt_info:
                properties = model.rt_info['framework']
                metadata = {key: str(value.value) for key, value in properties.items()}
            wanted = self._precision or metadata.get('precision')
            can = core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
            bf16 = wanted == 'bf16' and 'BF16' in can
            settings['INFERENCE_PRECISION_HINT'] = 'bf16' if bf16 else 'f32'
            compiled = core.compile_model(model, 'CPU', settings)
        except RuntimeError as error:
            raise ModelFileError(
                f'cannot load {self.model_path} with OpenVINO: {_cause(error)}'
            ) from error
        inputs = compiled.inputs
        dtype = _DTYPES.get(inputs[0].element_type.get_type_name()) if len(inputs) == 1 else None
        if dtype is None or len(inputs[0].partial_shape) != 4:
            found = ', '.join(f'{item.element_type} {item.partial_shape}' for item in inputs)
            raise ModelFileError(
                f'{self.model_path} is no image detector: expected one 4-axis float or uint8 '
                f'input, found {found}'
            )
        self._input_spec = TensorSpec(
            inputs[0].any_name,
            dtype,
            tuple(
                None if size.is_dynamic else size.get_length() for size in inputs[0].partial_shape
            ),
        )
        self._metadata = metadata
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    def infer(self, blob: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Run the network once; see Backend.infer."""
        if self._request is None:
            raise self._not_active()
        try:
            outputs = self._request.infer([blob], share_inputs=True, share_outputs=True)
        except (RuntimeError, ValueError) as error:
            raise BackendError(
                f'OpenVINO failed on an input of shape {blob.shape}: {_cause(error)}'
            ) from error
        return [np.asarray(output, dtype=np.float32) for output in outputs.to_tuple()]

    def close(self) -> None:
        """Free the model."""
        self._request = None
        self._compiled = None
        self._input_spec = None


def _cause(error: BaseException) -> str:
    """The line of an OpenVINO error that says what happened: those before it name source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(('Exception from', 'Check '))]
    return told[0] if told else first_line(error)
