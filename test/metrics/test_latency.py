"""Latency histograms: exact merge, percentiles within their bucket, a window that slides."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.metrics.latency import (
    GROWTH,
    PROMETHEUS_BOUNDS_MS,
    LatencyHistogram,
    SlidingTotals,
    StageLatencies,
)

latencies_ms = st.lists(st.floats(2e-3, 9e5), min_size=1, max_size=200)


def filled(samples_ms):
    histogram = LatencyHistogram()
    for sample_ms in samples_ms:
        histogram.add(sample_ms)
    return histogram


@given(latencies_ms)
def test_percentiles_are_within_a_bucket_of_the_nearest_rank(samples_ms):
    summary = filled(samples_ms).summary()
    expected = np.percentile(samples_ms, [50, 90, 95, 99], method='inverted_cdf')
    actual = [summary.p50_ms, summary.p90_ms, summary.p95_ms, summary.p99_ms]
    np.testing.assert_allclose(actual, expected, rtol=GROWTH - 1)
    assert summary.count == len(samples_ms)
    assert summary.avg_ms == pytest.approx(np.mean(samples_ms))
    assert summary.max_ms == max(samples_ms)


@given(latencies_ms, latencies_ms)
def test_merge_equals_histogram_of_all_samples(first_ms, second_ms):
    merged = filled(first_ms)
    merged.merge(filled(second_ms))
    assert merged.counts == filled(first_ms + second_ms).counts


@given(latencies_ms, latencies_ms)
def test_what_came_since_an_earlier_state_is_exact(first_ms, second_ms):
    earlier, later = filled(first_ms), filled(first_ms + second_ms)
    recent = later.since(earlier)
    assert recent.counts == filled(second_ms).counts
    assert recent.sum_ms == pytest.approx(sum(second_ms), rel=1e-6, abs=1e-3)
    assert max(second_ms) <= recent.max_ms * (1 + 1e-9)


def test_a_histogram_that_lost_samples_was_reset():
    assert filled([1.0]).since(filled([1.0, 1.0])) is None
    assert filled([5.0, 5.0]).since(filled([1.0])) is None
    assert LatencyHistogram().since(filled([1.0])) is None


@given(latencies_ms)
def test_counts_below_the_exported_bounds_are_exact(samples_ms):
    # Bounds are rounded to four digits, which is less than any sample here is beside one.
    away = [ms for ms in samples_ms if min(abs(ms / b - 1) for b in PROMETHEUS_BOUNDS_MS) > 1e-3]
    expected = [sum(ms < bound for ms in away) for bound in PROMETHEUS_BOUNDS_MS]
    assert filled(away).cumulative() == expected


@given(latencies_ms)
def test_text_form_loses_nothing(samples_ms):
    histogram = filled(samples_ms)
    again = LatencyHistogram.from_text(histogram.to_text())
    assert again.counts == histogram.counts
    assert again.summary() == histogram.summary()


def test_text_of_an_empty_histogram():
    assert LatencyHistogram.from_text(LatencyHistogram().to_text()).count == 0


@pytest.mark.parametrize(
    'text',
    ['', '1.0', 'a b', '1.0 1.0 5', '1.0 1.0 5:x', '1.0 1.0 -1:1', '1.0 1.0 99999:1', '1 1 3:0'],
)
def test_text_that_is_no_histogram_is_refused(text):
    with pytest.raises(ValueError, match='no latency histogram'):
        LatencyHistogram.from_text(text)


@pytest.mark.parametrize('sample_ms', [0.0, -5.0, math.nan, 1e9])
def test_samples_beyond_the_range_count_at_its_ends(sample_ms):
    assert filled([sample_ms]).summary().count == 1


def test_summary_of_nothing_is_nan():
    summary = LatencyHistogram().summary()
    assert summary.count == 0
    assert math.isnan(summary.p95_ms)


def test_window_forgets_and_total_does_not():
    now_s = 0.0
    stages = StageLatencies(window_s=10.0, clock_s=lambda: now_s)
    stages.add('track', 1.0)
    now_s = 5.0
    stages.add('track', 3.0)
    assert stages.summaries()['track'].avg_ms == pytest.approx(2.0)
    now_s = 12.0
    assert stages.summaries()['track'].avg_ms == pytest.approx(3.0)
    now_s = 40.0
    assert stages.summaries()['track'].count == 0
    assert stages.totals()['track'].summary().count == 2
    stages.reset()
    assert stages.summaries() == {}


@pytest.fixture
def sliding(clock):
    return SlidingTotals(10.0, clock_s=clock)


def test_window_over_totals_of_several_processes_equals_all_samples(sliding, clock):
    rng = np.random.default_rng(0)
    total = {'detector': LatencyHistogram(), 'tracker': LatencyHistogram()}
    recent = LatencyHistogram()
    for second in range(1, 31):
        clock.now_s += 1.0
        for sender, histogram in total.items():
            for sample_ms in rng.lognormal(2.0, 0.5, 20):
                histogram.add(sample_ms)
                if second > 20:
                    recent.add(sample_ms)
            sliding.update(sender, {'publish': filled_from(histogram)}, age_s=float(second))
    window = sliding.window('publish', ('detector', 'tracker'))
    assert window.counts == recent.counts
    assert window.sum_ms == pytest.approx(recent.sum_ms)


def filled_from(histogram):
    return LatencyHistogram.from_text(histogram.to_text())


def test_window_counts_from_the_start_of_a_young_sender(sliding):
    sliding.update('tracker', {'track': filled([1.0, 2.0])}, age_s=3.0)
    assert sliding.window('track', ('tracker',)).count == 2


def test_window_leaves_out_what_an_old_sender_did_before_it_was_heard(sliding, clock):
    sliding.update('tracker', {'track': filled([1.0, 2.0])}, age_s=100.0)
    assert sliding.window('track', ('tracker',)).count == 0
    clock.now_s += 1.0
    sliding.update('tracker', {'track': filled([1.0, 2.0, 3.0])}, age_s=101.0)
    assert sliding.window('track', ('tracker',)).counts == filled([3.0]).counts


def test_sender_that_starts_anew_is_counted_anew(sliding, clock):
    sliding.update('tracker', {'track': filled([1.0] * 5)}, age_s=5.0)
    clock.now_s += 1.0
    sliding.update('tracker', {'track': filled([9.0])}, age_s=0.5)
    assert sliding.window('track', ('tracker',)).counts == filled([9.0]).counts


def test_silent_sender_leaves_the_window(sliding, clock):
    sliding.update('tracker', {'track': filled([1.0])}, age_s=1.0)
    clock.now_s += 11.0
    assert sliding.window('track', ('tracker',)).count == 0
    assert sliding.totals('tracker')['track'].count == 1


def test_states_are_bounded_in_a_long_window(clock):
    sliding = SlidingTotals(3600.0, clock_s=clock)
    total = LatencyHistogram()
    for second in range(1, 8000):
        clock.now_s += 1.0
        total.add(5.0)
        sliding.update('tracker', {'track': filled_from(total)}, age_s=float(second))
    assert len(sliding._recent['tracker', 'track'].steps) < 40
    assert 3600 <= sliding.window('track', ('tracker',)).count <= 3600 * 1.05


def test_steps_of_the_window_hold_their_own_samples_only(sliding, clock):
    total = LatencyHistogram()
    for second in range(1, 300):
        clock.now_s += 1.0
        total.add(1.05**second)
        sliding.update('tracker', {'track': filled_from(total)}, age_s=float(second))
    steps = sliding._recent['tracker', 'track'].steps
    assert len(total.counts) > 250
    assert sum(len(step.added.counts) for step in steps) < 15
    assert sliding.window('track', ('tracker',)).count == sum(step.added.count for step in steps)
