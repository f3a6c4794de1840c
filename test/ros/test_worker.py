"""The worker: newest item wins, one bad item does not end the stream."""

import os
import threading

import pytest

from edge_perception.ros.worker import Worker, call_nice

DEADLINE_S = 10.0


class Gate:
    """A process function that stops at each item until it is let on."""

    def __init__(self):
        self.done = []
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)
        self.finished = threading.Semaphore(0)

    def __call__(self, item):
        self.entered.release()
        assert self.open.acquire(timeout=DEADLINE_S)
        if item == 'bad':
            raise ValueError(item)
        self.done.append(item)
        self.finished.release()

    def wait_entered(self):
        assert self.entered.acquire(timeout=DEADLINE_S)

    def let_on(self):
        """Let one item on, and wait until it is done."""
        before = len(self.done)
        self.open.release()
        assert self.finished.acquire(timeout=DEADLINE_S)
        assert len(self.done) == before + 1


@pytest.fixture
def errors():
    return []


@pytest.fixture
def worker(errors):
    worker = Worker(name='test', on_error=errors.append)
    yield worker
    worker.stop()


def test_newest_item_wins_and_overtaken_ones_are_counted(worker):
    gate = Gate()
    lane = worker.lane(gate)
    worker.start()
    lane.offer(1)
    gate.wait_entered()
    for item in (2, 3, 4):
        lane.offer(item)
    gate.open.release(2)
    gate.wait_entered()
    assert worker.stop()
    assert gate.done == [1, 4]
    assert lane.counts.received == 4
    assert lane.counts.dropped == 2
    assert lane.counts.processed == 2


def test_deep_lane_keeps_order(worker):
    gate = Gate()
    lane = worker.lane(gate, depth=3)
    worker.start()
    for item in range(3):
        lane.offer(item)
    gate.open.release(3)
    for _ in range(3):
        gate.wait_entered()
    worker.stop()
    assert gate.done == [0, 1, 2]


def test_earlier_lane_goes_first(worker):
    gate = Gate()
    frames, corrections = worker.lane(gate, depth=2), worker.lane(gate, depth=2)
    corrections.offer('correction')
    frames.offer('frame 1')
    frames.offer('frame 2')
    worker.start()
    gate.open.release(3)
    for _ in range(3):
        gate.wait_entered()
    worker.stop()
    assert gate.done == ['frame 1', 'frame 2', 'correction']


def test_error_is_counted_and_reported_and_the_worker_lives_on(worker, errors):
    gate = Gate()
    lane = worker.lane(gate, depth=2)
    worker.start()
    lane.offer('bad')
    lane.offer('good')
    gate.open.release(2)
    gate.wait_entered()
    gate.wait_entered()
    worker.stop()
    assert gate.done == ['good']
    assert lane.counts.failed == 1
    assert [str(error) for error in errors] == ['bad']


def test_stop_drops_what_waits_and_lets_the_item_in_work_finish(worker):
    gate = Gate()
    lane = worker.lane(gate)
    worker.start()
    lane.offer(1)
    gate.wait_entered()
    lane.offer(2)
    assert not worker.stop(timeout_s=0.01)
    gate.let_on()
    worker.start()
    assert lane.counts.dropped == 1
    lane.offer(3)
    gate.wait_entered()
    gate.let_on()
    assert worker.stop()
    assert gate.done == [1, 3]


def test_niceness_is_that_of_the_thread_alone():
    def niceness():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    assert call_nice(3, niceness) == before + 3
    assert niceness() == before


def test_error_of_a_nice_call_reaches_the_caller():
    def fail():
        raise KeyError('reason')

    with pytest.raises(KeyError, match='reason'):
        call_nice(1, fail)


def test_lane_that_must_wait_lets_others_go_first_and_is_asked_again(worker):
    may_start = threading.Event()
    done = []
    asked = threading.Event()
    finished = threading.Event()

    def delay_s():
        asked.set()
        return 0.0 if may_start.is_set() else 0.001

    first = worker.lane(done.append)
    gated = worker.lane(lambda item: (done.append(item), finished.set()), delay_s=delay_s)
    worker.start()
    gated.offer('request')
    assert asked.wait(DEADLINE_S)
    first.offer('image')
    while first.counts.processed == 0:
        threading.Event().wait(0.001)
    assert done == ['image']
    may_start.set()
    assert finished.wait(DEADLINE_S)
    assert done == ['image', 'request']


def test_lane_tells_how_long_items_waited_and_which_were_dropped(worker):
    gate = Gate()
    waited_ms, dropped = [], []
    lane = worker.lane(gate, waited=waited_ms.append, dropped=dropped.append)
    lane.offer('old')
    lane.offer('first')
    worker.start()
    gate.wait_entered()
    lane.offer('late')
    gate.open.release(2)
    gate.wait_entered()
    worker.stop()
    assert dropped == ['old']
    assert len(waited_ms) == 2
    assert all(0.0 <= wait_ms < 1e4 for wait_ms in waited_ms)
    lane.offer('never taken')
    worker.stop()
    assert dropped == ['old', 'never taken']


def test_lanes_of_a_group_are_served_in_turn_however_much_one_of_them_is_offered(worker):
    gate = Gate()
    turns = worker.turns(gate)
    greedy, modest = turns.lane(), turns.lane()
    worker.start()
    greedy.offer('greedy')
    gate.wait_entered()
    for _ in range(3):
        modest.offer('modest')
        for _ in range(10):
            greedy.offer('greedy')
        gate.open.release(2)
        gate.wait_entered()
        gate.wait_entered()
    gate.open.release()
    assert worker.stop()
    assert gate.done == [['greedy'], ['modest']] * 3 + [['greedy']]
    assert modest.counts.dropped == 0
    assert greedy.counts.dropped == 27


def test_what_waits_is_taken_together_one_of_each_lane(worker):
    gate = Gate()
    turns = worker.turns(gate, at_once=2)
    lanes = [turns.lane(depth=2) for _ in range(3)]
    for lane, items in zip(lanes, ('ab', 'c', 'd'), strict=True):
        for item in items:
            lane.offer(item)
    worker.start()
    gate.open.release(2)
    gate.wait_entered()
    gate.wait_entered()
    worker.stop()
    # Nothing waits for a batch to be full, and nobody is first twice.
    assert gate.done == [['a', 'c'], ['d', 'b']]
    assert [lane.counts.processed for lane in lanes] == [2, 1, 1]


def test_only_what_is_alike_is_taken_together(worker):
    gate = Gate()
    turns = worker.turns(gate, at_once=3, alike=str.isupper)
    lanes = [turns.lane() for _ in range(3)]
    for lane, item in zip(lanes, 'aBc', strict=True):
        lane.offer(item)
    worker.start()
    gate.open.release(2)
    gate.wait_entered()
    gate.wait_entered()
    worker.stop()
    assert gate.done == [['a', 'c'], ['B']]


def test_an_item_that_fails_among_others_fails_alone(worker):
    done = []
    told = []

    def process(items):
        if 'bad' in items:
            raise ValueError('bad')
        done.extend(items)

    turns = worker.turns(process, at_once=3)
    lanes = [
        turns.lane(on_error=lambda error, i=i: told.append((i, str(error)))) for i in range(3)
    ]
    finished = threading.Event()
    last = worker.lane(lambda item: finished.set())
    for lane, item in zip(lanes, ('good', 'bad', 'good'), strict=True):
        lane.offer(item)
    last.offer(None)
    worker.start()
    assert finished.wait(DEADLINE_S)
    assert done == ['good', 'good']
    assert told == [(1, 'bad')]
    assert [lane.counts.failed for lane in lanes] == [0, 1, 0]
    assert [lane.counts.processed for lane in lanes] == [1, 0, 1]
