"""Other work begins only where it ends before the next image is due."""

import pytest

from edge_perception.ros.pace import Pace


class Clock:
    def __init__(self):
        self.now_s = 50.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pace(clock):
    return Pace(clock_s=clock)


def run_stream(pace, clock, *, period_s, every, work_s, images=40):
    """Images at an even rate, every N-th of which is worked on; ends with one that is due next."""
    for number in range(images):
        clock.now_s += period_s
        pace.arrived(every - number % every, every)
        if number % every == 0:
            pace.worked(work_s)


def test_work_may_begin_at_any_time_without_images(pace):
    assert pace.delay_s() == 0.0
    assert not pace.is_full


def test_work_begins_only_where_it_fits_in(pace, clock):
    run_stream(pace, clock, period_s=0.1, every=5, work_s=0.16, images=41)
    # The last image was worked on; the next one is due in 0.5 s, and work takes 0.2 s with margin.
    for offset_s, fits in ((0.0, True), (0.2, True), (0.29, True), (0.31, False), (0.45, False)):
        clock.now_s += offset_s
        assert (pace.delay_s() == 0.0) is fits, offset_s
        clock.now_s -= offset_s


def test_due_image_that_is_late_is_waited_for(pace, clock):
    run_stream(pace, clock, period_s=0.1, every=5, work_s=0.05, images=41)
    clock.now_s += 0.55
    assert pace.delay_s() > 0.0


def test_stream_that_leaves_no_gap_is_full(pace, clock):
    run_stream(pace, clock, period_s=0.1, every=1, work_s=0.09)
    assert pace.is_full
    assert pace.delay_s() > 0.0


def test_stream_that_has_ended_is_in_nobodys_way(pace, clock):
    run_stream(pace, clock, period_s=0.1, every=1, work_s=0.09)
    clock.now_s += 1.1
    assert pace.delay_s() == 0.0
    assert not pace.is_full


def test_rate_after_a_pause_is_learnt_anew(pace, clock):
    run_stream(pace, clock, period_s=0.02, every=5, work_s=0.09)
    assert pace.is_full
    clock.now_s += 5.0
    run_stream(pace, clock, period_s=0.2, every=5, work_s=0.09, images=6)
    assert not pace.is_full


def test_one_slow_run_does_not_close_the_gaps(pace, clock):
    run_stream(pace, clock, period_s=0.1, every=2, work_s=0.05, images=60)
    pace.worked(3.0)
    assert not pace.is_full
