"""Rate over a sliding window."""

import pytest

from edge_perception.metrics.fps import FPSMeter


def tick(meter, clock, count, period_s):
    for _ in range(count):
        clock.now_s += period_s
        meter.tick()


@pytest.mark.parametrize('rate_hz', [1.0, 10.0, 30.0, 120.0])
def test_even_events_give_their_rate(clock, rate_hz):
    meter = FPSMeter(window_s=5.0, clock_s=clock)
    tick(meter, clock, int(rate_hz * 8), 1 / rate_hz)
    assert meter.fps == pytest.approx(rate_hz)


def test_needs_two_events(clock):
    meter = FPSMeter(clock_s=clock)
    assert meter.fps == 0.0
    tick(meter, clock, 1, 0.1)
    assert meter.fps == 0.0


def test_follows_a_change_of_rate_within_the_window(clock):
    meter = FPSMeter(window_s=2.0, clock_s=clock)
    tick(meter, clock, 100, 0.1)
    tick(meter, clock, 100, 0.05)
    assert meter.fps == pytest.approx(20.0)


def test_falls_when_events_stop_and_ends_at_zero(clock):
    meter = FPSMeter(window_s=5.0, clock_s=clock)
    tick(meter, clock, 50, 0.1)
    clock.now_s += 2.0
    assert 0.0 < meter.fps < 8.0
    clock.now_s += 4.0
    assert meter.fps == 0.0


def test_events_at_one_instant_are_no_rate(clock):
    meter = FPSMeter(clock_s=clock)
    tick(meter, clock, 3, 0.0)
    assert meter.fps == 0.0


def test_reset_forgets(clock):
    meter = FPSMeter(clock_s=clock)
    tick(meter, clock, 10, 0.1)
    meter.reset()
    assert meter.fps == 0.0
