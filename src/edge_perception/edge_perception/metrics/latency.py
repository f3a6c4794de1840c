"""Latency distributions that are cheap to fill, bounded in memory and merge exactly."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

LOWEST_MS = 1e-3
HIGHEST_MS = 1e6
BUCKETS_PER_DECADE = 240
"""So many that a percentile is within 0.5 % of the true sample, and a multiple of five: the bounds
of PROMETHEUS_BOUNDS_MS are then bounds of buckets, and counts up to them are exact."""
GROWTH = 10 ** (1 / BUCKETS_PER_DECADE)
LAST_BUCKET = round(math.log10(HIGHEST_MS / LOWEST_MS)) * BUCKETS_PER_DECADE

_BOUND_INDICES = tuple(
    range(2 * BUCKETS_PER_DECADE, 7 * BUCKETS_PER_DECADE + 1, BUCKETS_PER_DECADE // 5)
)
PROMETHEUS_BOUNDS_MS = tuple(
    float(f'{LOWEST_MS * 10 ** (index / BUCKETS_PER_DECADE):.4g}') for index in _BOUND_INDICES
)
"""Upper bounds from 0.1 ms to 10 s, five a decade, for exporting histograms with few buckets."""


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
    of the merged samples, and the difference of two states of one that of the samples in between
    (as in HdrHistogram, G. Tene, hdrhistogram.org, with geometric instead of piecewise linear
    buckets). A percentile is the middle of its bucket: within 0.5 % of the sample. The mean and
    the maximum are exact.

    Attributes:
        counts: bucket index -> count, of the buckets that are not empty.
        sum_ms: of all durations.
        max_ms: the longest one.
    """

    __slots__ = ('counts', 'max_ms', 'sum_ms')

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.sum_ms = 0.0
        self.max_ms = 0.0

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.counts.values())

    def add(self, latency_ms: float) -> None:
        """Count one duration. Below 1 us (also negative, from a stepped clock) counts as 1 us."""
        if not latency_ms > LOWEST_MS:  # NaN too
            latency_ms = LOWEST_MS
        index = int(math.log10(min(latency_ms, HIGHEST_MS) / LOWEST_MS) * BUCKETS_PER_DECADE)
        self.counts[index] = self.counts.get(index, 0) + 1
        self.sum_ms += latency_ms
        if latency_ms > self.max_ms:
            self.max_ms = latency_ms

    def merge(self, other: LatencyHistogram) -> None:
        """Add the samples of `other` to this histogram."""
        counts = self.counts
        for index, count in other.counts.items():
            counts[index] = counts.get(index, 0) + count
        self.sum_ms += other.sum_ms
        self.max_ms = max(self.max_ms, other.max_ms)

    def since(self, earlier: LatencyHistogram) -> LatencyHistogram | None:
        """The samples that came after `earlier`, an older state of this histogram.

        Their maximum is known to within its bucket.

        Returns:
            None when `earlier` holds samples that this one does not: it was reset in between.
        """
        difference = LatencyHistogram()
        for index, count in self.counts.items():
            if more := count - earlier.counts.get(index, 0):
                difference.counts[index] = more
        if min(difference.counts.values(), default=0) < 0 or earlier.counts.keys() - self.counts:
            return None
        difference.sum_ms = max(self.sum_ms - earlier.sum_ms, 0.0)
        if difference.counts:
            difference.max_ms = min(
                self.max_ms, LOWEST_MS * GROWTH ** (max(difference.counts) + 1)
            )
        return difference

    def cumulative(self) -> list[int]:
        """Counts of the durations below each of PROMETHEUS_BOUNDS_MS."""
        totals = []
        total = 0
        items = deque(sorted(self.counts.items()))
        for bound in _BOUND_INDICES:
            while items and items[0][0] < bound:
                total += items.popleft()[1]
            totals.append(total)
        return totals

    def to_text(self) -> str:
        """The histogram as one line, to carry it in a message."""
        buckets = ' '.join(f'{index}:{count}' for index, count in sorted(self.counts.items()))
        return f'{float(self.sum_ms)!r} {float(self.max_ms)!r} {buckets}'.rstrip()

    @classmethod
    def from_text(cls, text: str) -> LatencyHistogram:
        """The inverse of `to_text`.

        Raises:
            ValueError: the text is no histogram.
        """
        histogram = cls()
        try:
            sum_ms, max_ms, *buckets = text.split()
            histogram.sum_ms, histogram.max_ms = float(sum_ms), float(max_ms)
            for bucket in buckets:
                index, count = map(int, bucket.split(':'))
                if not 0 <= index <= LAST_BUCKET or count <= 0:
                    raise ValueError(f'bucket {index} with count {count}')
                histogram.counts[index] = count
        except ValueError as error:
            raise ValueError(f'no latency histogram: {error}') from error
        return histogram

    def summary(self) -> LatencySummary:
        """Mean and percentiles of everything counted so far."""
        count = self.count
        if not count:
            return LatencySummary(0, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)
        ordered = sorted(self.counts.items())

        def percentile_ms(percent: int) -> float:
            # Nearest rank: the smallest sample with at least p % of all at or below it.
            rank = math.ceil(percent * count / 100)
            total = 0
            for index, bucket_count in ordered:
                total += bucket_count
                if total >= rank:
                    return min(LOWEST_MS * GROWTH ** (index + 0.5), self.max_ms)
            return self.max_ms

        return LatencySummary(
            count,
            self.sum_ms / count,
            p50_ms=percentile_ms(50),
            p90_ms=percentile_ms(90),
            p95_ms=percentile_ms(95),
            p99_ms=percentile_ms(99),
            max_ms=self.max_ms,
        )


class SlidingTotals:
    """Durations of the last seconds, from histograms that only ever grow.

    The histograms of several processes arrive as totals since their start. What lies between two
    arrivals of one sender is their difference, which loses nothing; so percentiles over a window
    need no samples to be sent. A sender that starts anew is noticed by its smaller counts.

    Args:
        window_s: how far back.
        clock_s: steady time.
    """

    _STEPS = 30

    def __init__(self, window_s: float, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._clock_s = clock_s
        self._recent: dict[tuple[str, str], _Recent] = {}

    def update(self, sender: str, totals: Mapping[str, LatencyHistogram], age_s: float) -> None:
        """Take in the histograms of `sender`, by stage, which it began to fill `age_s` ago."""
        now_s = self._clock_s()
        for stage, total in totals.items():
            recent = self._recent.get((sender, stage))
            added = total.since(recent.total) if recent is not None else None
            if recent is None or added is None:
                # Heard for the first time: what is older than the window is not of the window.
                added = total if age_s < self._window_s else LatencyHistogram()
                recent = self._recent[sender, stage] = _Recent(total, now_s - age_s)
            recent.total = total
            begin_s = recent.steps[-1].end_s if recent.steps else recent.since_s
            # Steps of the window, as in StageLatencies: so many are kept and no more.
            if recent.steps and now_s - recent.steps[-1].begin_s < self._window_s / self._STEPS:
                last = recent.steps.pop()
                begin_s = last.begin_s
                added = _merged((last.added, added))  # the first may be `total` itself
            recent.steps.append(_Step(begin_s, now_s, added))
            while len(recent.steps) > 1 and recent.steps[0].end_s <= now_s - self._window_s:
                recent.steps.popleft()

    def totals(self, sender: str) -> dict[str, LatencyHistogram]:
        """What `sender` said last, by stage."""
        return {
            stage: recent.total for (name, stage), recent in self._recent.items() if name == sender
        }

    def window(self, stage: str, senders: tuple[str, ...]) -> LatencyHistogram:
        """The durations of `stage` in the window, of all `senders` together."""
        oldest_s = self._clock_s() - self._window_s
        parts: list[LatencyHistogram] = []
        for sender in senders:
            recent = self._recent.get((sender, stage))
            steps = tuple(recent.steps) if recent is not None else ()
            # A sender that fell silent leaves the window like its samples do.
            if steps and steps[-1].end_s > oldest_s:
                parts += (step.added for step in steps)
        return _merged(parts)


@dataclass(frozen=True)
class _Step:
    """Samples that one sender took of one stage, from begin to end."""

    begin_s: float
    end_s: float
    added: LatencyHistogram


class _Recent:
    """What one sender said of one stage.

    Only the newest total is kept: it has hundreds of buckets, and the samples of a step few.
    """

    def __init__(self, total: LatencyHistogram, since_s: float) -> None:
        self.total = total
        self.since_s = since_s
        self.steps: deque[_Step] = deque()


def _merged(parts: Iterable[LatencyHistogram]) -> LatencyHistogram:
    result = LatencyHistogram()
    for part in parts:
        result.merge(part)
    return result


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
            self._since_s = self._clock_s()
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

    @property
    def age_s(self) -> float:
        """Seconds since the totals began."""
        return self._clock_s() - self._since_s

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
