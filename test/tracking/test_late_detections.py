"""Detections that come late, out of order, twice, or for frames that the tracker never saw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from walking import FRAME_NS, detections, walkers

from edge_perception.tracking import TRACKERS, create_tracker

EVERY_TRACKER = pytest.mark.parametrize('name', TRACKERS)


def assert_same_but_for_ids(first, second):
    """The same boxes, and ids that stand in a one-to-one relation."""
    first, second = (t[np.lexsort(t.xyxy.T)] for t in (first, second))
    np.testing.assert_allclose(first.xyxy, second.xyxy, atol=1e-3)
    np.testing.assert_allclose(
        first.time_since_detection_s, second.time_since_detection_s, atol=1e-6
    )
    np.testing.assert_array_equal(first.source, second.source)
    np.testing.assert_allclose(first.age_s, second.age_s, atol=1e-6)


@EVERY_TRACKER
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_late_correction_gives_what_it_had_given_in_time(name, data):
    frames = 16
    draw = data.draw
    count = draw(st.integers(1, 4))
    seen = [
        detections(
            walkers(count, k)[draw(st.lists(st.booleans(), min_size=count, max_size=count))],
            0.9,
        )
        for k in range(frames)
    ]
    detected = draw(st.lists(st.booleans(), min_size=frames, max_size=frames))
    delays = draw(st.lists(st.integers(0, 6), min_size=frames, max_size=frames))

    in_time, late = create_tracker(name), create_tracker(name)
    for k in range(frames):
        if detected[k]:
            in_time.correct(k * FRAME_NS, seen[k])
        in_time.step(k * FRAME_NS)
    arrivals = sorted((k + delays[k], delays[k], k) for k in range(frames) if detected[k])
    for k in range(frames):
        late.step(k * FRAME_NS)
        for _, _, j in [a for a in arrivals if a[0] == k]:
            late.correct(j * FRAME_NS, seen[j])
    for _, _, j in [a for a in arrivals if a[0] >= frames]:
        late.correct(j * FRAME_NS, seen[j])
    now = frames * FRAME_NS
    assert_same_but_for_ids(in_time.step(now), late.step(now))
    assert late.statistics.ignored_corrections == 0


@EVERY_TRACKER
def test_an_id_that_was_shown_stays_when_an_earlier_detection_comes_later(name):
    tracker = create_tracker(name)
    for k in range(8):
        tracker.step(k * FRAME_NS)
    for k in (4, 5, 6, 7):
        tracker.correct(k * FRAME_NS, detections(walkers(1, k)))
    (shown,) = tracker.step(8 * FRAME_NS).track_id.tolist()
    for k in (3, 2):
        tracker.correct(k * FRAME_NS, detections(walkers(1, k)))
    tracks = tracker.step(9 * FRAME_NS)
    assert tracks.track_id.tolist() == [shown]
    np.testing.assert_allclose(tracks.age_s, 0.7, atol=1e-6)
    tracker.correct(9 * FRAME_NS, detections(np.vstack((walkers(1, 9), [[500, 300, 540, 400]]))))
    for k in (10, 11, 12):
        tracker.correct(
            k * FRAME_NS, detections(np.vstack((walkers(1, k), [[500, 300, 540, 400]])))
        )
        tracks = tracker.step(k * FRAME_NS)
    assert len(set(tracks.track_id.tolist())) == 2
    assert shown in tracks.track_id


@EVERY_TRACKER
def test_detections_of_a_dropped_frame_count_where_they_belong(name):
    every, dropped = create_tracker(name), create_tracker(name)
    for k in range(12):
        for tracker in (every, dropped):
            tracker.correct(k * FRAME_NS, detections(walkers(2, k)))
        every.step(k * FRAME_NS)
        if k % 3 != 1:
            dropped.step(k * FRAME_NS)
    assert_same_but_for_ids(every.step(12 * FRAME_NS), dropped.step(12 * FRAME_NS))

    late = create_tracker(name)
    for k in range(12):
        if k % 3 != 1:
            late.step(k * FRAME_NS)
    for k in range(12):
        late.correct(k * FRAME_NS, detections(walkers(2, k)))
    assert_same_but_for_ids(every.step(13 * FRAME_NS), late.step(13 * FRAME_NS))


@EVERY_TRACKER
def test_unusable_corrections_are_counted_and_change_nothing(name):
    tracker = create_tracker(name)
    for k in range(40):
        tracker.correct(k * FRAME_NS, detections(walkers(1, k)))
        tracker.step(k * FRAME_NS)
    elsewhere = detections([[400, 400, 450, 500]])
    tracker.correct(10 * FRAME_NS, elsewhere)  # 2.9 s ago
    tracker.correct(30 * FRAME_NS, elsewhere)  # a second one for this stamp
    assert tracker.statistics.ignored_corrections == 2
    assert len(tracker.step(40 * FRAME_NS)) <= 1

    tracker.reset()
    tracker.correct(39 * FRAME_NS, elsewhere)  # from before the reset
    assert len(tracker.step(41 * FRAME_NS)) == 0
    tracker.correct(40 * FRAME_NS, elsewhere)
    assert tracker.statistics.ignored_corrections == 4
    assert len(tracker.step(42 * FRAME_NS)) == 0


@EVERY_TRACKER
def test_detections_from_before_a_jump_back_do_not_wait_for_their_time(name):
    tracker = create_tracker(name)
    for k in range(50, 60):
        tracker.step(k * FRAME_NS)
    tracker.step(0)
    tracker.correct(59 * FRAME_NS, detections(walkers(1, 59)))
    for k in range(1, 70):
        assert len(tracker.step(k * FRAME_NS)) == 0
    assert tracker.statistics.ignored_corrections == 1


@EVERY_TRACKER
def test_a_detector_that_dies_and_comes_back(name):
    tracker = create_tracker(name)
    for k in range(100):
        if k < 20 or k >= 80:
            tracker.correct(k * FRAME_NS, detections(walkers(2, k)))
        tracks = tracker.step(k * FRAME_NS)
        if 50 < k < 80:
            assert len(tracks) == 0
    order = np.argsort(tracks.xyxy[:, 1])
    np.testing.assert_allclose(tracks.xyxy[order], walkers(2, 99), atol=2.0)
    assert sorted(tracks.track_id) == [3, 4]
