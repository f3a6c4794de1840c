"""Latency histograms: exact merge, percentiles within their bucket, a window that slides."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_perception.metrics.latency import GROWTH, LatencyHistogram, StageLatencies

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


@given(latencies_ms)
def test_sparse_form_loses_nothing(samples_ms):
    histogram = filled(samples_ms)
    again = LatencyHistogram.from_sparse(histogram.sparse(), histogram.sum_ms, histogram.max_ms)
    assert again.summary() == histogram.summary()


@pytest.mark.parametrize('counts', [{-1: 1}, {10**6: 1}, {3: -1}])
def test_sparse_form_out_of_range_is_refused(counts):
    with pytest.raises(ValueError, match='no latency bucket'):
        LatencyHistogram.from_sparse(counts, 0.0, 0.0)


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
