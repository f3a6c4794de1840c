"""Frames per second over a sliding window."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable


class FPSMeter:
    """Rate of events over the last `window_s` seconds. Thread-safe.

    While events come evenly the rate is that of the intervals between them, right from the
    second event; when they stop it falls, and is 0 once the window is empty.
    """

    def __init__(
        self, window_s: float = 5.0, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._window_s = window_s
        self._clock_s = clock_s
        self._times_s: deque[float] = deque()
        self._lock = threading.Lock()

    def tick(self) -> None:
        """Count one event, now."""
        with self._lock:
            now_s = self._clock_s()
            self._times_s.append(now_s)
            self._forget(now_s)

    def reset(self) -> None:
        """Forget every event."""
        with self._lock:
            self._times_s.clear()

    @property
    def fps(self) -> float:
        """Events per second; 0.0 with fewer than two events in the window."""
        with self._lock:
            now_s = self._clock_s()
            self._forget(now_s)
            if len(self._times_s) < 2:
                return 0.0
            first_s, last_s = self._times_s[0], self._times_s[-1]
            intervals = len(self._times_s) - 1
            # An event that is overdue counts as silence, one that is merely next does not.
            end_s = max(last_s, now_s - (last_s - first_s) / intervals)
            return intervals / (end_s - first_s) if end_s > first_s else 0.0

    def _forget(self, now_s: float) -> None:
        while self._times_s and self._times_s[0] <= now_s - self._window_s:
            self._times_s.popleft()
