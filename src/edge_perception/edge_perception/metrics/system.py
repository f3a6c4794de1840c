"""Load of the machine, of its GPUs, and of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# Where the drivers of NVIDIA's Jetson boards say how busy the GPU is, in per mille (JetPack 4 to
# 6). NVML exists there from JetPack 6 on, and does not tell it.
_JETSON_LOAD_FILES = (
    'devices/gpu.0/load',
    'devices/platform/gpu.0/load',
    'devices/platform/*.gpu/load',
    'devices/platform/bus@0/*.gpu/load',
)


@dataclass(frozen=True)
class ProcessSample:
    """Load of one process.

    Attributes:
        cpu_percent: of one core, since the previous reading; above 100 with several threads.
        rss_mib: resident memory.
        threads: how many it has.
    """

    cpu_percent: float
    rss_mib: float
    threads: int


@dataclass(frozen=True)
class GpuSample:
    """Load of one GPU; None is what it does not tell.

    Attributes:
        name: the product's name.
        usage_percent: share of time in which it computed, 0 to 100.
        memory_used_mib: of its own memory.
        memory_total_mib: of its own memory.
        temperature_c: of the chip.
        power_w: drawn now.
    """

    name: str
    usage_percent: float | None = None
    memory_used_mib: float | None = None
    memory_total_mib: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class SystemSample:
    """One reading.

    Attributes:
        cpu_percent: of all cores together, 0 to 100, since the previous reading.
        memory_percent: of the machine's memory, 0 to 100.
        temperature_c: of the hottest sensor, None where there is none.
        processes: by process id; one that has ended is left out.
        gpus: in the driver's order.
    """

    cpu_percent: float
    memory_percent: float
    temperature_c: float | None
    processes: dict[int, ProcessSample]
    gpus: tuple[GpuSample, ...]


class SystemSampler:
    """Reads the load; each `sample` covers the time since the one before.

    Args:
        sysfs: where the kernel shows its devices.
    """

    def __init__(self, sysfs: Path = Path('/sys')) -> None:
        self._processes: dict[int, psutil.Process] = {}
        self._nvml = _Nvml()
        self._jetson = _JetsonGpu(sysfs)
        psutil.cpu_percent()

    def sample(self, pids: Iterable[int] = ()) -> SystemSample:
        """Read the load now, without waiting.

        Args:
            pids: the processes to look at. The CPU load of one is 0 when it is first asked for.
        """
        gpus = self._nvml.sample()
        if jetson := self._jetson.sample():
            # The board has one GPU: NVML knows its name, sysfs its load.
            gpus = (jetson,)
        return SystemSample(
            cpu_percent=psutil.cpu_percent(),
            memory_percent=psutil.virtual_memory().percent,
            temperature_c=max(
                (reading.current for sensor in _temperatures().values() for reading in sensor),
                default=None,
            ),
            processes=self._sample_processes(set(pids)),
            gpus=gpus,
        )

    def close(self) -> None:
        """Let go of the GPU's driver."""
        self._nvml.close()

    def _sample_processes(self, pids: set[int]) -> dict[int, ProcessSample]:
        self._processes = {pid: self._processes[pid] for pid in self._processes.keys() & pids}
        samples = {pid: self._sample_process(pid) for pid in sorted(pids)}
        return {pid: sample for pid, sample in samples.items() if sample is not None}

    def _sample_process(self, pid: int) -> ProcessSample | None:
        try:
            process = self._processes.setdefault(pid, psutil.Process(pid))
            with process.oneshot():
                return ProcessSample(
                    process.cpu_percent(),
                    process.memory_info().rss / 2**20,
                    process.num_threads(),
                )
        except psutil.Error:  # it has ended, or is not ours to look at
            self._processes.pop(pid, None)
            return None


class _Nvml:
    """NVIDIA's management library, where there is a driver."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        try:
            import pynvml
        except ImportError:  # nvidia-ml-py is not on every platform
            return
        self._library = pynvml
        try:
            pynvml.nvmlInit()
            self._handles = [
                pynvml.nvmlDeviceGetHandleByIndex(index)
                for index in range(pynvml.nvmlDeviceGetCount())
            ]
        except pynvml.NVMLError:  # no driver
            return

    def sample(self) -> tuple[GpuSample, ...]:
        """Every GPU that the driver knows."""
        return tuple(self._sample_one(handle) for handle in self._handles)

    def _sample_one(self, handle: Any) -> GpuSample:
        nvml = self._library
        usage = self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        power_mw = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        return GpuSample(
            name=str(self._ask(lambda: nvml.nvmlDeviceGetName(handle)) or 'GPU'),
            usage_percent=None if usage is None else float(usage),
            memory_used_mib=memory.used / 2**20 if memory else None,
            memory_total_mib=memory.total / 2**20 if memory else None,
            temperature_c=self._ask(
                lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            ),
            power_w=None if power_mw is None else power_mw / 1e3,
        )

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The answer, None where this GPU has none (MIG slices and Jetson boards lack several)."""
        try:
            return question()
        except self._library.NVMLError:
            return None

    def close(self) -> None:
        if self._handles:
            self._handles = []
            self._library.nvmlShutdown()


class _JetsonGpu:
    """The GPU of a Jetson board, from sysfs."""

    def __init__(self, sysfs: Path) -> None:
        self._load_file = next(
            (path for pattern in _JETSON_LOAD_FILES for path in sorted(sysfs.glob(pattern))), None
        )
        self._temperature_file = next(
            (
                zone / 'temp'
                for zone in sorted(sysfs.glob('class/thermal/thermal_zone*'))
                if (_read(zone / 'type') or '').lower().startswith('gpu')
            ),
            None,
        )

    def sample(self) -> GpuSample | None:
        """What it does now; None on another machine."""
        load = _read(self._load_file)
        if load is None:
            return None
        temperature = _read(self._temperature_file)
        return GpuSample(
            name='Jetson GPU',
            usage_percent=int(load) / 10,
            temperature_c=None if temperature is None else int(temperature) / 1e3,
        )


def _read(path: Path | None) -> str | None:
    """The text of a file of the kernel; None when it cannot be read just now."""
    if path is None:
        return None
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _temperatures() -> dict[str, list[Any]]:
    # Only Linux and FreeBSD have the function, and a container may hide the sensors.
    read = getattr(psutil, 'sensors_temperatures', None)
    try:
        return read() if read else {}
    except OSError:
        return {}
