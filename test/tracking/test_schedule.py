"""When the adaptive schedule asks for a detection."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from walking import FRAME_NS, detections

from edge_perception.tracking import (
    AdaptiveParameters,
    AdaptiveSchedule,
    TrackingError,
    TrackingQuality,
    create_tracker,
)

CALM = TrackingQuality()


def requests(schedule, quality, frames, *, answered_after_s=0.0):
    """The frames asked for by a schedule whose requests are answered that long after."""
    asked = []
    under_way_ns = None
    for k in range(frames):
        now_ns = k * FRAME_NS
        if under_way_ns is not None and now_ns - under_way_ns >= answered_after_s * 1e9:
            schedule.detection_took(answered_after_s)
            under_way_ns = None
        if schedule.wants(now_ns, quality(k)):
            asked.append(k)
            under_way_ns = now_ns
    return asked


def test_calm_tracks_wait_for_the_longest_interval():
    schedule = AdaptiveSchedule(AdaptiveParameters(max_interval_s=0.8))
    assert requests(schedule, lambda k: CALM, 20) == [0, 8, 16]
    assert schedule.reason == 'longest interval'
    assert schedule.chosen_n == 8


@pytest.mark.parametrize(
    ('doubt', 'reason'),
    [
        (TrackingQuality(uncertainty=0.5), 'uncertain tracks'),
        (TrackingQuality(failed_part=0.9), 'tracks lost in the picture'),
        (TrackingQuality(outside_motion=0.1), 'motion outside the tracks'),
    ],
)
def test_doubt_asks_at_once(doubt, reason):
    schedule = AdaptiveSchedule()
    assert requests(schedule, lambda k: doubt if k >= 3 else CALM, 4) == [0, 3]
    assert schedule.reason == reason


DOUBTFUL = TrackingQuality(uncertainty=9.0)


def test_detections_take_no_more_than_their_share():
    schedule = AdaptiveSchedule(AdaptiveParameters(max_load=0.5, max_interval_s=1.0))
    asked = requests(schedule, lambda k: DOUBTFUL, 40, answered_after_s=0.2)
    assert asked == list(range(0, 40, 4))


def test_nothing_else_is_asked_for_while_a_detection_is_under_way():
    schedule = AdaptiveSchedule(AdaptiveParameters(max_load=1.0, max_interval_s=1.0))
    asked = [k for k in range(4) if schedule.wants(k * FRAME_NS, DOUBTFUL)]
    assert asked == [0]
    schedule.detection_took(0.4)
    assert schedule.wants(4 * FRAME_NS, DOUBTFUL)


def test_an_answer_that_never_comes_stops_nothing():
    schedule = AdaptiveSchedule(AdaptiveParameters(max_interval_s=1.0))
    asked = [k for k in range(31) if schedule.wants(k * FRAME_NS, DOUBTFUL)]
    assert asked == [0, 10, 20, 30]


def moving(part):
    return TrackingQuality(outside_motion=part)


def test_motion_that_a_detection_leaves_unexplained_asks_once_only():
    schedule = AdaptiveSchedule(AdaptiveParameters(max_interval_s=1.0))
    leaves = 0.02
    asked = requests(schedule, lambda k: moving(leaves), 30, answered_after_s=0.1)
    assert asked == [0, 10, 20]


def test_a_newcomer_is_noticed_among_what_moves_anyway():
    schedule = AdaptiveSchedule(AdaptiveParameters(max_interval_s=1.0))
    leaves, person = 0.02, 0.01
    asked = requests(
        schedule, lambda k: moving(leaves + person * (k == 14)), 20, answered_after_s=0.1
    )
    assert asked == [0, 10, 14]


def test_who_comes_in_while_a_detection_is_under_way_is_noticed():
    schedule = AdaptiveSchedule(AdaptiveParameters(max_interval_s=1.0, max_load=1.0))
    asked = requests(schedule, lambda k: moving(0.02 * (k >= 1)), 10, answered_after_s=0.3)
    assert asked == [0, 3]


def test_motion_that_has_ceased_is_forgotten():
    schedule = AdaptiveSchedule(AdaptiveParameters(max_interval_s=1.0))
    # A gust of two seconds, calm for fifteen, then somebody who moves less than the leaves did.
    asked = requests(
        schedule,
        lambda k: moving(0.02 if k < 20 else 0.01 * (k == 174)),
        180,
        answered_after_s=0.1,
    )
    assert 174 in asked


def test_a_jump_back_asks_anew():
    schedule = AdaptiveSchedule()
    assert schedule.wants(100 * FRAME_NS, CALM)
    assert schedule.wants(0, CALM)


@pytest.mark.parametrize(
    'wrong', [{'max_load': 0.0}, {'min_interval_s': 2.0}, {'min_interval_s': -1.0}]
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(TrackingError):
        AdaptiveParameters(**wrong)


def street(*, person_at=None, shift=0):
    """A textured background and, on it, a textured figure."""
    random = np.random.default_rng(3)
    background = cv2.GaussianBlur(random.integers(0, 255, (240, 400), np.uint8), (0, 0), 3)
    image = np.roll(background, shift, 1)
    if person_at is not None:
        figure = cv2.GaussianBlur(random.integers(0, 255, (80, 30), np.uint8), (0, 0), 2)
        image[100:180, person_at : person_at + 30] = figure
    return image


def test_uncertainty_grows_until_a_detection_comes():
    tracker = create_tracker('hybrid')
    seen = []
    for k in range(12):
        if k in (0, 1, 2, 10):
            tracker.correct(k * FRAME_NS, detections([[100, 100, 130, 180]]))
        tracker.step(k * FRAME_NS)
        seen.append(tracker.quality.uncertainty)
    assert (np.diff(seen[2:10]) > 0).all()
    assert seen[10] < seen[9]


def test_a_newcomer_moves_outside_the_tracks():
    tracker = create_tracker('hybrid')
    tracker.step(0, street())
    tracker.step(FRAME_NS, street())
    assert tracker.quality.outside_motion == 0.0
    tracker.step(2 * FRAME_NS, street(person_at=100))
    assert tracker.quality.outside_motion > 0.003
    tracker.correct(2 * FRAME_NS, detections([[100, 100, 130, 180]]))
    tracker.step(3 * FRAME_NS, street(person_at=104))
    assert tracker.quality.outside_motion < 0.003


def test_who_has_left_is_not_looked_for_in_the_picture():
    tracker = create_tracker('hybrid')
    for k in range(4):
        tracker.correct(k * FRAME_NS, detections([[100, 100, 130, 180]]))
        tracker.step(k * FRAME_NS, street(person_at=100))
    # The figure is gone, and so is all that the box could follow.
    blank = np.full_like(street(), 128)
    tracker.step(4 * FRAME_NS, blank)
    assert tracker.quality.failed_part == 1.0
    tracker.correct(4 * FRAME_NS, detections([]))
    tracker.step(5 * FRAME_NS, blank)
    assert tracker.quality.failed_part == 0.0
