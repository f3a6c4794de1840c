"""When other work may use the detector, so that the live images do not notice it."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from statistics import median

# What a machine under load adds to an estimate, at most times.
MARGIN = 1.25
MARGIN_S = 0.002
UNKNOWN_WORK_S = 0.1
ASK_AGAIN_S = 0.003
IDLE_S = 1.0
SHARE = 0.02
"""Of the images, that may meet other work where it is longer than the time between two images:
few enough for a 95th percentile not to show it."""


class Pace:
    """Watches a stream of images, of which every N-th is worked on. Thread-safe.

    A network that runs cannot be interrupted, and takes the cores from whatever else is to be
    done. So other work begins when an image has been answered, and only if it will have ended by
    the time the next one comes. Where it takes longer than that, it begins seldom, and still ends
    before the next image that is worked on.

    Args:
        clock_s: steady time.
    """

    def __init__(self, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._intervals_s: deque[float] = deque(maxlen=16)
        self._durations_s: deque[float] = deque(maxlen=20)
        self._last_s = -math.inf
        self._answered_s = -math.inf
        self._images_until_due = 1
        self._every = 1
        self._not_before_s = -math.inf

    def arrived(self, images_until_due: int, every: int) -> None:
        """An image has come.

        Args:
            images_until_due: which of the following is worked on, 1 being the next.
            every: and from then on every so many.
        """
        with self._lock:
            now_s = self._clock_s()
            interval_s = now_s - self._last_s
            # After a pause the stream may have another rate.
            if interval_s > max(IDLE_S, 4 * self._period_s()):
                self._intervals_s.clear()
            else:
                self._intervals_s.append(interval_s)
            self._last_s = now_s
            self._images_until_due = images_until_due
            self._every = every

    def answered(self) -> None:
        """The tracker has done the last image."""
        with self._lock:
            self._answered_s = self._clock_s()

    def worked(self, duration_s: float) -> None:
        """One piece of work, of the stream or other, has taken so long."""
        with self._lock:
            self._durations_s.append(duration_s)

    def delay_s(self) -> float:
        """0 when other work may begin now, and then it does; else when to ask again."""
        with self._lock:
            now_s = self._clock_s()
            if self._is_idle():
                return 0.0
            tracker_works = self._answered_s > now_s - IDLE_S
            if tracker_works and self._answered_s < self._last_s:
                return ASK_AGAIN_S
            work_s, period_s = self._work_s(), self._period_s()
            if now_s + work_s <= self._last_s + period_s:
                return 0.0
            if work_s < period_s:
                return ASK_AGAIN_S  # the next gap will do
            due_s = self._last_s + self._images_until_due * period_s
            if now_s < self._not_before_s or now_s + work_s > due_s:
                return ASK_AGAIN_S
            images_met = math.ceil(work_s / period_s)
            self._not_before_s = now_s + images_met * period_s / SHARE
            return 0.0

    @property
    def is_full(self) -> bool:
        """Whether the stream leaves no gap that other work fits into."""
        with self._lock:
            return not self._is_idle() and self._every * self._period_s() < self._work_s()

    def _period_s(self) -> float:
        return median(self._intervals_s) if self._intervals_s else 0.0

    def _is_idle(self) -> bool:
        return self._clock_s() - self._last_s > max(IDLE_S, 4 * self._period_s())

    def _work_s(self) -> float:
        if not self._durations_s:
            return UNKNOWN_WORK_S
        # One slow piece in ten (a page fault, another process) must not close every gap.
        ordered = sorted(self._durations_s)
        return ordered[int(0.9 * (len(ordered) - 1))] * MARGIN + MARGIN_S
