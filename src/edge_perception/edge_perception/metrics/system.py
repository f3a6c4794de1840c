"""Load of the machine and of this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil


@dataclass(frozen=True)
class SystemSample:
    """One reading.

    Attributes:
        cpu_percent: of all cores together, 0 to 100, since the previous reading.
        process_cpu_percent: of one core, of this process, since the previous reading.
        memory_percent: of the machine's memory, 0 to 100.
        process_rss_mib: resident memory of this process.
        temperature_c: of the hottest sensor, None where there is none.
    """

    cpu_percent: float
    process_cpu_percent: float
    memory_percent: float
    process_rss_mib: float
    temperature_c: float | None


class SystemSampler:
    """Reads the load; each `sample` covers the time since the one before."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.sample()

    def sample(self) -> SystemSample:
        """Read the load now, without waiting."""
        return SystemSample(
            cpu_percent=psutil.cpu_percent(),
            process_cpu_percent=self._process.cpu_percent(),
            memory_percent=psutil.virtual_memory().percent,
            process_rss_mib=self._process.memory_info().rss / 2**20,
            temperature_c=max(
                (reading.current for sensor in _temperatures().values() for reading in sensor),
                default=None,
            ),
        )


def _temperatures() -> dict[str, list[Any]]:
    # Only Linux and FreeBSD have the function, and a container may hide the sensors.
    read = getattr(psutil, 'sensors_temperatures', None)
    try:
        return read() if read else {}
    except OSError:
        return {}
