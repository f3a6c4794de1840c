"""Latency distributions that are cheap to fill, bounded in memory and merge exactly."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOWEST_MS = 1e-3
HIGHEST_MS = 1e6
GROWTH = 1.01  # width of a bucket: a percentile is within 0.5 % of the true sample
_LOG_GROWTH = math.log(GROWTH)
BUCKETS = math.ceil(math.log(HIGHEST_MS / LOWEST_MS) / _LOG_GROWTH) + 1
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class LatencySummary:
    """Mean and percentiles of a set of durations, in milliseconds; NaN when count is 0."""

    count: int
    avg_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class LatencyHistogram:
    """Counts of durations in geometric buckets from 1 us to 1000 s.

    Buckets are the same in every instance, so the merge of two histograms equals the histogram
    of the merged samples. A percentile is the middle of its bucket: within 0.5 % of the sample.
    The mean and the maximum are exact.
    """

    __slots__ = ('counts', 'max_ms', 'sum_ms')

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.sum_ms = 0.0
        self.max_ms = 0.0

    def add(self, latency_ms: float) -> None:
        """Count one duration. Below 1 us (also negative, from a stepped clock) counts as 1 us."""
        if not latency_ms > LOWEST_MS:  # NaN too
            latency_ms = LOWEST_MS
        index = int(math.log(min(latency_ms, HIGHEST_MS) / LOWEST_MS) / _LOG_GROWTH)
        self.counts[index] += 1
        self.sum_ms += latency_ms
        if latency_ms > self.max_ms:
            self.max_ms = latency_ms

    def merge(self, other: LatencyHistogram) -> None:
        """Add the samples of `other` to this histogram."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum_ms += other.sum_ms
        self.max_ms = max(self.max_ms, other.max_ms)

    def sparse(self) -> dict[int, int]:
        """The buckets that are not empty: index -> count, to carry a histogram in a message."""
        return {index: count for index, count in enumerate(self.counts) if count}

    @classmethod
    def from_sparse(
        cls, counts: Mapping[int, int], sum_ms: float, max_ms: float
    ) -> LatencyHistogram:
        """The inverse of `sparse`.

        Raises:
            ValueError: an index or a count is out of range.
        """
        histogram = cls()
        for index, count in counts.items():
            if not 0 <= index < BUCKETS or count < 0:
                raise ValueError(f'bucket {index} with count {count} is no latency bucket')
            histogram.counts[index] = count
        histogram.sum_ms, histogram.max_ms = sum_ms, max_ms
        return histogram

    def summary(self) -> LatencySummary:
        """Mean and percentiles of everything counted so far."""
        cumulated: NDArray[np.int64] = np.cumsum(self.counts)
        count = int(cumulated[-1])
        if not count:
            return LatencySummary(0, *[math.nan] * 6)
        # Nearest rank: the smallest sample with at least p % of all samples at or below it.
        ranks = np.ceil(np.array(PERCENTILES) / 100 * count)
        middles = LOWEST_MS * GROWTH ** (np.searchsorted(cumulated, ranks) + 0.5)
        p50_ms, p90_ms, p95_ms, p99_ms = np.minimum(middles, self.max_ms).tolist()
        return LatencySummary(
            count, self.sum_ms / count, p50_ms, p90_ms, p95_ms, p99_ms, self.max_ms
        )


class StageLatencies:
    """Latencies of named stages over a sliding window, and since the start. Thread-safe.

    The window moves in steps of a tenth, so that old samples leave it without being stored one
    by one.
    """

    _STEPS = 10

    def __init__(
        self, window_s: float = 10.0, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._step_s = window_s / self._STEPS
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget every sample."""
        with self._lock:
            self._window: dict[str, deque[tuple[int, LatencyHistogram]]] = {}
            self._total: dict[str, LatencyHistogram] = {}

    def add(self, stage: str, latency_ms: float) -> None:
        """Count one duration of `stage`."""
        step = int(self._clock_s() / self._step_s)
        with self._lock:
            steps = self._window.get(stage)
            if steps is None:
                steps = self._window[stage] = deque(maxlen=self._STEPS)
                self._total[stage] = LatencyHistogram()
            if not steps or steps[-1][0] != step:
                steps.append((step, LatencyHistogram()))
            steps[-1][1].add(latency_ms)
            self._total[stage].add(latency_ms)

    def summaries(self) -> dict[str, LatencySummary]:
        """Mean and percentiles of every stage over the window."""
        oldest = int(self._clock_s() / self._step_s) - self._STEPS
        with self._lock:
            merged = {stage: LatencyHistogram() for stage in self._window}
            for stage, steps in self._window.items():
                for step, histogram in steps:
                    if step > oldest:
                        merged[stage].merge(histogram)
        return {stage: histogram.summary() for stage, histogram in merged.items()}

    def totals(self) -> dict[str, LatencyHistogram]:
        """A copy of the histogram of every stage since the start."""
        with self._lock:
            copies = {stage: LatencyHistogram() for stage in self._total}
            for stage, histogram in self._total.items():
                copies[stage].merge(histogram)
        return copies
