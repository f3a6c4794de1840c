"""When the next item of a regular stream is due, and whether other work fits in before it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from statistics import median

# What a machine under load adds to an estimate, at most times.
MARGIN = 1.25
MARGIN_S = 0.002
UNKNOWN_WORK_S = 0.1
ASK_AGAIN_S = 0.005


class Pace:
    """Watches a stream of images, of which every N-th is worked on. Thread-safe.

    Work cannot be interrupted once it has begun, so other work of the same kind may begin only
    when it will have ended by the time the next image is due.

    Args:
        clock_s: steady time.
    """

    def __init__(self, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._intervals_s: deque[float] = deque(maxlen=16)
        self._durations_s: deque[float] = deque(maxlen=20)
        self._last_s = -1e9
        self._images_until_due = 1
        self._every = 1

    def arrived(self, images_until_due: int, every: int) -> None:
        """An image has come.

        Args:
            images_until_due: which of the following is worked on, 1 being the next.
            every: and from then on every so many.
        """
        with self._lock:
            now_s = self._clock_s()
            interval_s = now_s - self._last_s
            self._last_s = now_s
            self._images_until_due = images_until_due
            self._every = every
            # After a pause the stream may have another rate.
            if interval_s > 1.0 and interval_s > 4 * self._period_s():
                self._intervals_s.clear()
            else:
                self._intervals_s.append(interval_s)

    def worked(self, duration_s: float) -> None:
        """One piece of work, of the stream or other, has taken so long."""
        with self._lock:
            self._durations_s.append(duration_s)

    def delay_s(self) -> float:
        """0 when other work may begin now, else when to ask again."""
        with self._lock:
            if self._is_idle():
                return 0.0
            left_s = self._last_s + self._images_until_due * self._period_s() - self._clock_s()
            return 0.0 if left_s >= self._work_s() else ASK_AGAIN_S

    @property
    def is_full(self) -> bool:
        """Whether the stream leaves no gap that other work fits into."""
        with self._lock:
            return not self._is_idle() and self._every * self._period_s() < self._work_s()

    def _period_s(self) -> float:
        return median(self._intervals_s) if self._intervals_s else 0.0

    def _is_idle(self) -> bool:
        silent_s = self._clock_s() - self._last_s
        return silent_s > 1.0 and silent_s > 4 * self._period_s()

    def _work_s(self) -> float:
        if not self._durations_s:
            return UNKNOWN_WORK_S
        # One slow piece in ten (a page fault, another process) must not close every gap.
        ordered = sorted(self._durations_s)
        return ordered[int(0.9 * (len(ordered) - 1))] * MARGIN + MARGIN_S
