"""One thread that takes work from bounded lanes: the newest item wins, nothing queues up."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar('T')

STOP_S = 1.0
"""How long the end of a node waits for the work that it interrupts: whoever pressed Ctrl-C waits
as well, and an engine that hangs never comes back."""


@dataclass
class LaneCounts:
    """What became of the items offered to a lane since the start."""

    received: int = 0
    dropped: int = 0
    processed: int = 0
    failed: int = 0


class Lane(Generic[T]):
    """A bounded queue into a worker. A new item pushes out the oldest one of a full lane."""

    def __init__(
        self,
        worker: Worker,
        depth: int,
        waited: Callable[[float], None] | None,
        dropped: Callable[[T], None] | None,
        on_error: Callable[[Exception], None],
    ) -> None:
        self.counts = LaneCounts()
        self._worker = worker
        self._waited = waited
        self._dropped = dropped
        self._on_error = on_error
        self._items: deque[tuple[float, T]] = deque()
        self._depth = depth

    def offer(self, item: T) -> None:
        """Hand over `item` and return at once."""
        with self._worker.wake:
            self.counts.received += 1
            if len(self._items) == self._depth:
                self._drop(self._items.popleft()[1])
            self._items.append((time.perf_counter(), item))
            self._worker.wake.notify()

    def _drop(self, item: T) -> None:
        self.counts.dropped += 1
        if self._dropped:
            self._dropped(item)


class Turns(Generic[T]):
    """Lanes of equal rank: the one whose last turn was longest ago goes first.

    So a lane that is offered much more than others gets no more of the worker than they, as long
    as something waits in theirs.
    """

    def __init__(
        self,
        worker: Worker,
        process: Callable[[list[T]], None],
        at_once: int = 1,
        alike: Callable[[T], Hashable] | None = None,
        delay_s: Callable[[], float] | None = None,
    ) -> None:
        self._at_once = at_once
        self._alike = alike
        self._worker = worker
        self._process = process
        self._delay_s = delay_s
        self._lanes: list[Lane[T]] = []

    def lane(
        self,
        *,
        depth: int = 1,
        waited: Callable[[float], None] | None = None,
        dropped: Callable[[T], None] | None = None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> Lane[T]:
        """Add a lane; see Worker.lane. `on_error` takes the place of the worker's."""
        lane = Lane(self._worker, depth, waited, dropped, on_error or self._worker.on_error)
        self._lanes.append(lane)
        return lane

    def _take(self) -> list[Lane[T]]:
        """The lanes whose turn it is; they go to the end of the order."""
        taken = [lane for lane in self._lanes if lane._items]
        if self._alike and self._at_once > 1:
            kinds = [self._alike(lane._items[0][1]) for lane in taken]
            taken = [lane for lane, kind in zip(taken, kinds, strict=True) if kind == kinds[0]]
        del taken[self._at_once :]
        if len(self._lanes) > 1:
            for lane in taken:
                self._lanes.remove(lane)
                self._lanes.append(lane)
        return taken


class Worker:
    """Runs the items of its lanes on one thread; earlier lanes go first.

    Args:
        name: of the thread, as `top -H` and debuggers show it.
        on_error: called on the worker's thread with what an item raised; the worker lives on.
        nice: added to the thread's niceness (Linux), 0 to 19, so that heavy work yields to the
            threads that answer every frame.
    """

    def __init__(self, *, name: str, on_error: Callable[[Exception], None], nice: int = 0) -> None:
        self.wake = threading.Condition()
        self._name = name
        self.on_error = on_error
        self._nice = nice
        self._turns: list[Turns[Any]] = []
        self._thread: threading.Thread | None = None
        self._busy_since_s: float | None = None

    @property
    def busy_s(self) -> float:
        """How long the item in work has been so, in seconds; 0 when there is none."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else time.perf_counter() - since_s

    def lane(
        self,
        process: Callable[[T], None],
        *,
        depth: int = 1,
        waited: Callable[[float], None] | None = None,
        delay_s: Callable[[], float] | None = None,
        dropped: Callable[[T], None] | None = None,
    ) -> Lane[T]:
        """Add a lane that calls `process` with each item.

        Args:
            process: called on the worker's thread.
            depth: how many items may wait.
            waited: called with the milliseconds that each item waited, before it is processed.
            delay_s: asked before an item is taken: 0 to take it, else when to ask again. Work
                that must not be in the way of an earlier lane stays in its lane by it.
            dropped: called with each item that is pushed out, or that waits when the worker
                stops; returns at once.
        """
        turns: Turns[T] = Turns(self, lambda items: process(items[0]), delay_s=delay_s)
        self._turns.append(turns)
        return turns.lane(depth=depth, waited=waited, dropped=dropped)

    def turns(
        self,
        process: Callable[[list[T]], None],
        *,
        at_once: int = 1,
        alike: Callable[[T], Hashable] | None = None,
    ) -> Turns[T]:
        """Add a group of lanes that are served in fair turn.

        Args:
            process: called on the worker's thread with items of different lanes, one or more. It
                does all of them or raises before it has done any: then each is tried alone, so
                that a bad item harms no other lane.
            at_once: the most items to take together, of those that wait anyway.
            alike: items are taken together only where this is the same for all.
        """
        turns = Turns(self, process, at_once, alike)
        self._turns.append(turns)
        return turns

    def start(self) -> None:
        """Start the thread. What waits in the lanes is taken first."""
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = STOP_S) -> bool:
        """Let the item in work finish, drop what waits, end the thread.

        Returns:
            False when the item in work outlasted `timeout_s`; its thread ends after it.
        """
        with self.wake:
            thread, self._thread = self._thread, None
            for turns in self._turns:
                for lane in turns._lanes:
                    while lane._items:
                        lane._drop(lane._items.popleft()[1])
            self.wake.notify_all()
        if thread is None or thread is threading.current_thread():
            return True
        join_started(thread, timeout_s)
        return not thread.is_alive()

    def _is_current(self) -> bool:
        # A thread that outlasted its stop must not work beside the one started after it.
        return self._thread is threading.current_thread()

    def _next_turns(self) -> Turns[Any] | None:
        """The first lanes whose turn it is; waits when there are none, and returns None then."""
        if not self._is_current():
            return None
        ask_again_s: list[float] = []
        for turns in self._turns:
            if any(lane._items for lane in turns._lanes):
                delay_s = turns._delay_s() if turns._delay_s else 0.0
                if delay_s <= 0.0:
                    return turns
                ask_again_s.append(delay_s)
        self.wake.wait(min(ask_again_s, default=None))
        return None

    def _run(self) -> None:
        make_nice(self._nice)
        while True:
            with self.wake:
                while (turns := self._next_turns()) is None:
                    if not self._is_current():
                        return
                taken = [(lane, *lane._items.popleft()) for lane in turns._take()]
            now_s = time.perf_counter()
            for lane, offered_s, _ in taken:
                if lane._waited:
                    lane._waited((now_s - offered_s) * 1e3)
            self._busy_since_s = now_s
            self._work(turns, [(lane, item) for lane, _, item in taken])
            self._busy_since_s = None
            # A large frame must not live until the next one comes.
            del taken

    def _work(self, turns: Turns[T], taken: list[tuple[Lane[T], T]]) -> None:
        try:
            turns._process([item for _, item in taken])
            for lane, _ in taken:
                lane.counts.processed += 1
        except Exception as error:  # one bad item must not end the stream
            if len(taken) > 1:
                for each in taken:
                    self._work(turns, [each])
                return
            lane = taken[0][0]
            lane.counts.failed += 1
            lane._on_error(error)


def join_started(thread: threading.Thread, timeout_s: float) -> None:
    """Wait for a thread that may not have been started: a signal may come just before that."""
    if thread.ident is not None:
        thread.join(timeout_s)


def make_nice(nice: int) -> None:
    """Lower the priority of the calling thread, and of threads that it starts later (Linux)."""
    if nice:
        tid = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, tid, os.getpriority(os.PRIO_PROCESS, tid) + nice)


def call_nice(nice: int, function: Callable[[], T]) -> T:
    """Call `function` on a thread of lower priority and return its result or raise its error.

    Inference libraries start their thread pools while a model loads; the pool's threads inherit
    the priority of the thread that loads it.
    """
    result: list[T] = []
    errors: list[BaseException] = []

    finished = threading.Event()

    def run() -> None:
        make_nice(nice)
        try:
            result.append(function())
        except BaseException as error:
            errors.append(error)
        finally:
            finished.set()

    # A signal may end the wait. The interpreter must then still wait for this thread before it
    # ends, or the library aborts the process when it comes back from loading: hence no daemon, and
    # no join(), after whose interruption Python 3.11 takes the thread for ended.
    threading.Thread(target=run, name='load').start()
    finished.wait()
    if errors:
        raise errors[0]
    return result[0]
