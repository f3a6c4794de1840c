"""What every tracker does, whichever algorithm it runs."""

from __future__ import annotations

import numpy as np
import pytest
from walking import FRAME_NS, detections, walkers

from edge_perception.tracking import TRACKERS, TrackingError, create_tracker
from edge_perception.types import TrackSource

EVERY_TRACKER = pytest.mark.parametrize('name', TRACKERS)
# Those that predict: SimpleIOUTracker has no motion.
WITH_FILTER = pytest.mark.parametrize('name', [name for name in TRACKERS if name != 'iou'])


@EVERY_TRACKER
def test_people_who_walk_keep_their_ids(name):
    tracker = create_tracker(name)
    for frame in range(30):
        boxes = walkers(3, frame)
        tracker.correct(frame * FRAME_NS, detections(boxes))
        tracks = tracker.step(frame * FRAME_NS)
        if frame >= 5:
            order = np.argsort(tracks.xyxy[:, 1])
            assert len(tracks) == 3
            np.testing.assert_allclose(tracks.xyxy[order], boxes, atol=2.0)
            assert (tracks.source == TrackSource.DETECTED).all()
            assert (tracks.time_since_detection_s == 0).all()
            np.testing.assert_allclose(tracks.age_s, frame * 0.1, rtol=1e-5)
    assert sorted(tracks.track_id) == [1, 2, 3]


@WITH_FILTER
def test_boxes_go_on_between_detections(name):
    tracker = create_tracker(name)
    for frame in range(41):
        if frame % 5 == 0:
            tracker.correct(frame * FRAME_NS, detections(walkers(2, frame)))
        tracks = tracker.step(frame * FRAME_NS)
        if frame > 20:
            assert len(tracks) == 2
            order = np.argsort(tracks.xyxy[:, 1])
            np.testing.assert_allclose(tracks.xyxy[order], walkers(2, frame), atol=3.0)
            assert (tracks.source == TrackSource.DETECTED).all()
            np.testing.assert_allclose(tracks.time_since_detection_s, frame % 5 * 0.1, atol=1e-6)


def test_track_that_the_newest_detections_missed_is_predicted():
    tracker = create_tracker('hybrid', coast_s=0.5)
    for frame in range(6):
        tracker.correct(frame * FRAME_NS, detections(walkers(2, frame)))
        tracker.step(frame * FRAME_NS)
    tracker.correct(6 * FRAME_NS, detections(walkers(2, 6)[:1]))
    tracks = tracker.step(6 * FRAME_NS)
    order = np.argsort(tracks.xyxy[:, 1])
    expected = [TrackSource.DETECTED, TrackSource.PREDICTED]
    assert tracks.source[order].tolist() == expected
    assert tracker.step(7 * FRAME_NS).source[order].tolist() == expected


@WITH_FILTER
def test_boxes_do_not_lag_by_the_latency_of_the_detector(name):
    latency = 4
    tracker = create_tracker(name)
    for frame in range(40):
        if frame >= latency:
            seen = frame - latency
            tracker.correct(seen * FRAME_NS, detections(walkers(2, seen)))
        tracks = tracker.step(frame * FRAME_NS)
    order = np.argsort(tracks.xyxy[:, 1])
    np.testing.assert_allclose(tracks.xyxy[order], walkers(2, 39), atol=2.0)
    assert tracker.statistics.late_corrections == 36


@EVERY_TRACKER
def test_tracks_end_some_time_after_their_last_detection(name):
    tracker = create_tracker(name)
    for frame in range(10):
        tracker.correct(frame * FRAME_NS, detections(walkers(1, 0)))
        assert tracker.step(frame * FRAME_NS) is not None
    for frame in range(10, 60):
        tracker.correct(frame * FRAME_NS, detections([]))
        tracks = tracker.step(frame * FRAME_NS)
    assert len(tracks) == 0
    # Somebody else at the same place is somebody else.
    for frame in range(60, 65):
        tracker.correct(frame * FRAME_NS, detections(walkers(1, 0)))
        tracks = tracker.step(frame * FRAME_NS)
    assert tracks.track_id.tolist() == [2]


@EVERY_TRACKER
def test_ids_go_on_after_a_reset(name):
    tracker = create_tracker(name)
    for frame in range(5):
        tracker.correct(frame * FRAME_NS, detections(walkers(2, frame)))
        tracker.step(frame * FRAME_NS)
    tracker.reset()
    for frame in range(5):
        tracker.correct(frame * FRAME_NS, detections(walkers(2, frame)))
        tracks = tracker.step(frame * FRAME_NS)
    assert sorted(tracks.track_id) == [3, 4]
    assert tracker.statistics.resets == 1


@EVERY_TRACKER
def test_a_stamp_that_jumps_back_resets(name):
    tracker = create_tracker(name)
    for frame in (100, 101, 102):
        tracker.correct(frame * FRAME_NS, detections(walkers(1, 0)))
        tracker.step(frame * FRAME_NS)
    assert len(tracker.step(0)) == 0
    assert tracker.statistics.resets == 1


@EVERY_TRACKER
def test_the_same_stamp_again_changes_nothing(name):
    tracker = create_tracker(name)
    for frame in range(5):
        tracker.correct(frame * FRAME_NS, detections(walkers(2, frame)))
        tracks = tracker.step(frame * FRAME_NS)
    again = tracker.step(4 * FRAME_NS)
    np.testing.assert_array_equal(again.xyxy, tracks.xyxy)
    assert tracker.statistics.steps == 5


@pytest.mark.parametrize(('max_pace', 'stays'), [(3.0, True), (1.0, False)])
def test_noise_follows_the_pace_of_the_scene(max_pace, stays):
    tracker = create_tracker('hybrid', max_pace=max_pace)
    left = 300.0
    ids = set()
    for frame in range(60):
        # Two heights a second, and round about three times.
        left += 20.0 if (frame // 15) % 2 == 0 else -20.0
        tracker.correct(frame * FRAME_NS, detections([[left, 50, left + 40, 150]]))
        ids |= set(tracker.step(frame * FRAME_NS).track_id.tolist())
    assert (ids == {1}) == stays


def test_ids_are_of_one_class_only():
    tracker = create_tracker('hybrid')
    for frame in range(10):
        seen = detections([[10, 10, 50, 110]], classes=0 if frame < 5 else 7)
        tracker.correct(frame * FRAME_NS, seen)
        tracks = tracker.step(frame * FRAME_NS)
    assert set(zip(tracks.track_id.tolist(), tracks.class_id.tolist(), strict=True)) >= {(2, 7)}


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(TrackingError, match=r"no tracker 'magic'; there are iou, sort"):
        create_tracker('magic')
    with pytest.raises(TrackingError, match='has no speed; it has '):
        create_tracker('sort', speed=3)
    with pytest.raises(TrackingError, match='lost_s must be'):
        create_tracker('sort', lost_s=-1.0)


def test_parameters_can_be_changed_while_tracking():
    tracker = create_tracker('hybrid')
    tracker.correct(0, detections([[0, 0, 40, 100]], scores=0.4))
    assert len(tracker.step(0)) == 0
    tracker.set(new_track_score=0.3, high_score=0.3)
    tracker.correct(FRAME_NS, detections([[0, 0, 40, 100]], scores=0.4))
    assert len(tracker.step(FRAME_NS)) == 1
    with pytest.raises(TrackingError):
        tracker.parameters = create_tracker('sort').parameters
