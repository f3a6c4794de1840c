"""TensorRT: .engine files on an NVIDIA GPU, built by model_tools/build_tensorrt.py or Ultralytics.

Memory and streams of the GPU come from pycuda where it is installed (Jetson boards), else from
cuda-bindings. The device's primary context is shared with whatever else uses the GPU in this
process, and current only while a call of this backend runs: threads may come and go.
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_perception.detection.backends.base import Backend, TensorSpec
from edge_perception.detection.engine_file import read_engine, read_sidecar, sha256_of
from edge_perception.detection.errors import (
    BackendError,
    InputSizeError,
    ModelFileError,
    first_line,
)

TENSORRT_MODULES = ('tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings')
"""What may provide TensorRT's API: TensorRT, TensorRT-RTX, and the latter's bare bindings."""


def import_tensorrt() -> Any:
    """The TensorRT module that is installed.

    Raises:
        BackendError: none is, or it does not load.
    """
    for name in TENSORRT_MODULES:
        if importlib.util.find_spec(name) is not None:
            try:
                return importlib.import_module(name)
            except (ImportError, OSError) as error:
                raise BackendError(f'{name} does not load: {first_line(error)}') from error
    raise BackendError('TensorRT is not installed')


def tensorrt_label(trt: Any) -> str:
    """Product and version as a sidecar has them: an engine of one fits no other."""
    product = 'tensorrt_rtx' if 'rtx' in trt.__name__ else 'tensorrt'
    return f'{product} {trt.__version__}'


class Gpu(ABC):
    """The few calls of the CUDA driver that inference needs, on one device."""

    name: str
    compute_capability: str

    @abstractmethod
    def push(self) -> None:
        """Make the primary context current in this thread."""

    @abstractmethod
    def pop(self) -> None:
        """Undo `push`."""

    @abstractmethod
    def stream(self) -> int:
        """A new stream's handle."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for the stream."""

    @abstractmethod
    def allocate(self, size: int) -> int:
        """Address of so many bytes on the device."""

    @abstractmethod
    def pinned(self, size: int) -> NDArray[np.uint8]:
        """So many bytes of page-locked memory of the host, (size,)."""

    @abstractmethod
    def to_device(self, address: int, host: NDArray[Any]) -> None:
        """Start a copy on the stream."""

    @abstractmethod
    def to_host(self, host: NDArray[Any], address: int) -> None:
        """Start a copy on the stream."""

    @abstractmethod
    def release(self) -> None:
        """Free the stream and all memory; the context is current."""

    @abstractmethod
    def detach(self) -> None:
        """Let go of the context, which is no longer current: the last call."""


class CudaBindingsGpu(Gpu):
    """NVIDIA's own cuda-bindings."""

    def __init__(self, index: int) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._call(driver.cuInit(0))
        self._device = self._call(driver.cuDeviceGet(index))
        self.name = self._call(driver.cuDeviceGetName(256, self._device)).split(b'\0')[0].decode()
        attribute = driver.CUdevice_attribute
        major, minor = (
            self._call(driver.cuDeviceGetAttribute(item, self._device))
            for item in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.compute_capability = f'{major}.{minor}'
        self._context = self._call(driver.cuDevicePrimaryCtxRetain(self._device))
        self._stream: Any = None
        self._device_memory: list[int] = []
        self._host_memory: list[int] = []

    def push(self) -> None:
        self._call(self._driver.cuCtxPushCurrent(self._context))

    def pop(self) -> None:
        self._call(self._driver.cuCtxPopCurrent())

    def stream(self) -> int:
        flags = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = self._call(self._driver.cuStreamCreate(flags))
        return int(self._stream)

    def synchronize(self) -> None:
        self._call(self._driver.cuStreamSynchronize(self._stream))

    def allocate(self, size: int) -> int:
        address = int(self._call(self._driver.cuMemAlloc(size)))
        self._device_memory.append(address)
        return address

    def pinned(self, size: int) -> NDArray[np.uint8]:
        import ctypes

        address = int(self._call(self._driver.cuMemHostAlloc(size, 0)))
        self._host_memory.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def to_device(self, address: int, host: NDArray[Any]) -> None:
        self._call(
            self._driver.cuMemcpyHtoDAsync(address, host.ctypes.data, host.nbytes, self._stream)
        )

    def to_host(self, host: NDArray[Any], address: int) -> None:
        self._call(
            self._driver.cuMemcpyDtoHAsync(host.ctypes.data, address, host.nbytes, self._stream)
        )

    def release(self) -> None:
        for address in self._device_memory:
            self._driver.cuMemFree(address)
        for address in self._host_memory:
            self._driver.cuMemFreeHost(address)
        if self._stream is not None:
            self._driver.cuStreamDestroy(self._stream)

    def detach(self) -> None:
        self._driver.cuDevicePrimaryCtxRelease(self._device)

    def _call(self, result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status) != 0:
            raise BackendError(f'CUDA failed: {status.name}')
        return values[0] if values else None


class PycudaGpu(Gpu):
    """pycuda. Never `pycuda.autoinit`, whose context belongs to the thread that imports it."""

    def __init__(self, index: int) -> None:
        import pycuda.driver as driver

        self._driver = driver
        try:
            driver.init()
            device = driver.Device(index)
            self._context = device.retain_primary_context()
        except driver.Error as error:
            raise BackendError(f'CUDA failed: {first_line(error)}') from error
        self.name = device.name()
        self.compute_capability = '.'.join(map(str, device.compute_capability()))
        self._stream: Any = None
        self._memory: list[Any] = []

    def push(self) -> None:
        self._context.push()

    def pop(self) -> None:
        self._driver.Context.pop()

    def stream(self) -> int:
        self._stream = self._driver.Stream()
        return int(self._stream.handle)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def allocate(self, size: int) -> int:
        memory = self._driver.mem_alloc(size)
        self._memory.append(memory)
        return int(memory)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        memory: NDArray[np.uint8] = self._driver.pagelocked_empty(size, np.uint8)
        self._memory.append(memory.base)
        return memory

    def to_device(self, address: int, host: NDArray[Any]) -> None:
        self._driver.memcpy_htod_async(address, host, self._stream)

    def to_host(self, host: NDArray[Any], address: int) -> None:
        self._driver.memcpy_dtoh_async(host, address, self._stream)

    def release(self) -> None:
        for memory in self._memory:
            memory.free()
        self._memory = []
        self._stream = None

    def detach(self) -> None:
        self._context.detach()


def open_gpu(index: int) -> Gpu:
    """A device through whichever CUDA package is installed.

    Raises:
        BackendError: no package, no driver, or no such device.
    """
    if importlib.util.find_spec('pycuda') is not None:
        return PycudaGpu(index)
    if importlib.util.find_spec('cuda') is not None:
        try:
            return CudaBindingsGpu(index)
        except (ImportError, RuntimeError) as error:  # no driver's library on this machine
            raise BackendError(f'no NVIDIA driver: {first_line(error)}') from error
    raise BackendError('neither pycuda nor cuda-bindings is installed (pip install cuda-bindings)')


class TensorRtBackend(Backend):
    """An engine with its own execution context, stream and buffers.

    Buffers hold the largest shapes of the profile and are made once. `threads` and `spin` have no
    meaning here.
    """

    name: ClassVar[str] = 'tensorrt'
    suffixes: ClassVar[tuple[str, ...]] = ('.engine',)
    preference: ClassVar[int] = 20

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str = 'auto',
        threads: int | None = None,
        spin: bool | None = None,
    ) -> None:
        """See Backend."""
        super().__init__(model_path, device=device, threads=threads, spin=spin)
        self._gpu: Gpu | None = None
        self._engine: Any = None
        self._context: Any = None
        self._stream = 0
        self._input_spec: TensorSpec | None = None
        self._metadata: dict[str, str] = {}
        self._host: dict[str, NDArray[Any]] = {}
        self._address: dict[str, int] = {}
        self._output_names: list[str] = []

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Why TensorRT cannot be used here, None if it can."""
        if all(importlib.util.find_spec(name) is None for name in TENSORRT_MODULES):
            return 'TensorRT is not installed'
        if all(importlib.util.find_spec(name) is None for name in ('pycuda', 'cuda')):
            return 'neither pycuda nor cuda-bindings is installed (pip install cuda-bindings)'
        return None

    @property
    def device(self) -> str:
        """`cuda:INDEX`."""
        if self._context is None:
            raise self._not_active()
        return f'cuda:{self._index()}'

    @property
    def input_spec(self) -> TensorSpec:
        """The image input, with the limits of the engine's profile."""
        if self._input_spec is None:
            raise self._not_active()
        return self._input_spec

    @property
    def metadata(self) -> dict[str, str]:
        """What the engine file's header says."""
        if self._context is None:
            raise self._not_active()
        return dict(self._metadata)

    def activate(self) -> None:
        """Load the engine onto the GPU.

        Raises:
            ModelFileError: the file is missing or damaged.
            BackendError: no TensorRT, no GPU, or the engine was built for others than these.
        """
        if self._context is not None:
            return
        self._require_file()
        self._require_engine()
        index = self._index()
        trt = import_tensorrt()
        check_sidecar(self.model_path, tensorrt=tensorrt_label(trt))
        gpu = open_gpu(index)
        try:
            with self._current(gpu):
                try:
                    check_sidecar(self.model_path, gpu=gpu.name, capability=gpu.compute_capability)
                    self._metadata, plan = read_engine(self.model_path)
                    self._load(trt, gpu, plan)
                except BaseException:
                    self._context = self._engine = None
                    gpu.release()
                    raise
        except BaseException:
            gpu.detach()
            raise
        self._gpu = gpu

    def infer(self, blob: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Run the network once; see Backend.infer.

        Raises:
            InputSizeError: the shape is outside the engine's profile.
        """
        if self._gpu is None:
            raise self._not_active()
        spec = self.input_spec
        if not self._fits(blob.shape):
            raise InputSizeError(
                f'input shape {blob.shape} is outside the profile of {self.model_path.name}, '
                f'{spec.smallest} to {spec.largest}: build it again with other --min and --max'
            )
        with self._current(self._gpu) as gpu:
            if not self._context.set_input_shape(spec.name, tuple(blob.shape)):
                raise BackendError(f'TensorRT refused an input of shape {blob.shape}')
            staged = self._host[spec.name][: blob.size]
            staged[...] = blob.reshape(-1)
            gpu.to_device(self._address[spec.name], staged)
            if not self._context.execute_async_v3(self._stream):
                raise BackendError(f'TensorRT failed on an input of shape {blob.shape}')
            outputs = []
            for name in self._output_names:
                shape = tuple(self._context.get_tensor_shape(name))
                host = self._host[name][: int(np.prod(shape))]
                gpu.to_host(host, self._address[name])
                outputs.append(host.reshape(shape))
            gpu.synchronize()
        return [np.asarray(output, dtype=np.float32) for output in outputs]

    def close(self) -> None:
        """Free the engine and the GPU's memory."""
        gpu, self._gpu = self._gpu, None
        if gpu is None:
            return
        with self._current(gpu):
            # TensorRT's objects free memory too, so they go while the context is current.
            self._context = self._engine = None
            self._host, self._address = {}, {}
            self._input_spec = None
            gpu.release()
        gpu.detach()

    def _load(self, trt: Any, gpu: Gpu, plan: bytes) -> None:
        """Engine, execution context, stream and buffers; the GPU's context is current."""
        logger = trt.Logger(trt.Logger.ERROR)
        self._engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                f'TensorRT {trt.__version__} cannot load {self.model_path}: it was built by '
                f'another version or for another GPU{_rebuild(self.model_path)}'
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1 or len(self._engine.get_tensor_shape(inputs[0])) != 4:
            raise ModelFileError(f'{self.model_path} is no image detector: inputs {inputs}')
        (name,) = inputs
        low, _, high = self._engine.get_tensor_profile_shape(name, 0)
        self._input_spec = TensorSpec(
            name,
            np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))),
            tuple(None if size < 0 else int(size) for size in self._engine.get_tensor_shape(name)),
            tuple(low),
            tuple(high),
        )
        self._output_names = [item for item in names if item != name]
        self._context = self._engine.create_execution_context()
        self._stream = gpu.stream()
        self._context.set_input_shape(name, tuple(high))
        for item in names:
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(item)))
            count = int(np.prod(self._context.get_tensor_shape(item)))
            self._host[item] = gpu.pinned(count * dtype.itemsize).view(dtype)
            self._address[item] = gpu.allocate(count * dtype.itemsize)
            self._context.set_tensor_address(item, self._address[item])

    def _fits(self, shape: tuple[int, ...]) -> bool:
        spec = self.input_spec
        assert spec.smallest is not None and spec.largest is not None
        return len(shape) == 4 and all(
            low <= size <= high
            for low, size, high in zip(spec.smallest, shape, spec.largest, strict=True)
        )

    def _index(self) -> int:
        kind, index = self._requested_kind()
        if kind == 'cpu':
            raise BackendError('device cpu: backend tensorrt runs on a GPU only')
        return index

    @contextmanager
    def _current(self, gpu: Gpu) -> Iterator[Gpu]:
        gpu.push()
        try:
            yield gpu
        finally:
            gpu.pop()


def check_sidecar(
    engine: Path, *, tensorrt: str = '', gpu: str = '', capability: str = ''
) -> None:
    """Compare what an engine was built for with what is here; what is not given is not compared.

    Args:
        engine: the file; one without a sidecar is left to TensorRT's own judgement.
        tensorrt: product and version here.
        gpu: name of the GPU here.
        capability: its compute capability.

    Raises:
        BackendError: it does not fit; the line ends with the command that builds it again.
    """
    sidecar = read_sidecar(engine)
    if sidecar is None:
        return
    faults = []
    if tensorrt and sidecar.tensorrt != tensorrt:
        faults.append(f'was built by {sidecar.tensorrt}, here is {tensorrt}')
    # Engines that were built without a GPU choose their kernels when they are loaded.
    if gpu and sidecar.gpu and sidecar.gpu != gpu:
        faults.append(f'was built for {sidecar.gpu}, here is {gpu}')
    elif capability and sidecar.compute_capability and sidecar.compute_capability != capability:
        faults.append(
            f'was built for compute capability {sidecar.compute_capability}, here is {capability}'
        )
    if tensorrt:
        if sha256_of(engine) != sidecar.engine_sha256:
            faults.append('is not the file that its sidecar describes')
        source = engine.with_name(sidecar.onnx_name)
        if source.is_file() and sha256_of(source) != sidecar.onnx_sha256:
            faults.append(f'was built from another {sidecar.onnx_name} than the one beside it')
    if faults:
        raise BackendError(f'{engine.name} {" and ".join(faults)}{_rebuild(engine)}')


def _rebuild(engine: Path) -> str:
    """The end of a message: how to build the engine again."""
    sidecar = read_sidecar(engine)
    command = sidecar.command if sidecar else 'python model_tools/build_tensorrt.py --model ONNX'
    return f'; build it again: {command}'
