"""Other work begins only where it ends before the next image is due."""

import pytest

from edge_perception.ros.pace import Pace


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
        pace.answered()


def test_work_may_begin_at_any_time_without_images(pace):
    assert pace.delay_s() == 0.0
    assert not pace.is_full


def may_begin(pace, clock, offset_s):
    clock.now_s += offset_s
    fits = pace.delay_s() == 0.0
    clock.now_s -= offset_s
    return fits


def test_work_begins_only_where_it_ends_before_the_next_image(pace, clock):
    run_stream(pace, clock, period_s=0.1, every=5, work_s=0.04, images=41)
    # Work takes 0.052 s with its margin.
    assert [may_begin(pace, clock, offset_s) for offset_s in (0.0, 0.04, 0.05, 0.09)] == [
        True,
        True,
        False,
        False,
    ]


def test_work_waits_until_the_image_is_answered(pace, clock):
    run_stream(pace, clock, period_s=0.1, every=5, work_s=0.02, images=41)
    clock.now_s += 0.1
    pace.arrived(4, 5)
    assert pace.delay_s() > 0.0
    clock.now_s += 0.01
    pace.answered()
    assert pace.delay_s() == 0.0


def test_nobody_waits_for_a_tracker_that_is_elsewhere(pace, clock):
    for _ in range(40):
        clock.now_s += 0.1
        pace.arrived(5, 5)
        pace.worked(0.02)
    assert pace.delay_s() == 0.0


def test_image_that_is_late_is_waited_for(pace, clock):
    run_stream(pace, clock, period_s=0.1, every=5, work_s=0.05, images=41)
    assert not may_begin(pace, clock, 0.55)


def test_work_longer_than_the_time_between_images_begins_seldom(pace, clock):
    began = 0
    run_stream(pace, clock, period_s=0.03, every=5, work_s=0.07, images=50)
    for number in range(1000):
        clock.now_s += 0.03
        pace.arrived(5 - number % 5, 5)
        pace.answered()
        began += pace.delay_s() == 0.0
    # Each meets three images of thirty milliseconds, with its margin.
    assert 3 <= began <= 0.02 * 1000 / 3 + 1


def test_long_work_ends_before_an_image_that_is_due(pace, clock):
    run_stream(pace, clock, period_s=0.03, every=5, work_s=0.07, images=51)
    # Work takes 0.09 s with its margin; the image due next comes 0.15 s after the last one.
    assert not may_begin(pace, clock, 0.07)
    assert may_begin(pace, clock, 0.05)


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
