"""What objects look like, and what a tracker makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from walking import FRAME_NS, detections

from edge_perception.tracking import TrackingError, create_tracker
from edge_perception.tracking.appearance import (
    LOOK_SIZE,
    looks_of,
    mixed,
    unlikeness,
)
from edge_perception.tracking.picture import to_small_colour
from edge_perception.types import TrackSource

RED, BLUE, GREEN, WHITE = (40, 40, 200), (200, 60, 40), (50, 160, 60), (230, 230, 230)
BOX = (60, 100)  # width and height


def person(image, left, top, coat, trousers):
    width, height = BOX
    image[top : top + height // 2, left : left + width] = coat
    image[top + height // 2 : top + height, left : left + width] = trousers
    # Folds, so that the motion is seen.
    folds = np.random.default_rng(sum(coat)).normal(0, 20, (height // 4, width // 4, 1))
    image[top : top + height, left : left + width] += np.repeat(np.repeat(folds, 4, 0), 4, 1)


def street(*people, seed=0):
    """(240, 640, 3) BGR, noisy as a camera is, people as (left, top, coat, trousers)."""
    image = np.full((240, 640, 3), 120.0)
    for one in people:
        person(image, *one)
    noise = np.random.default_rng(seed).normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def boxes(*corners):
    return np.array([[x, y, x + BOX[0], y + BOX[1]] for x, y in corners], float)


def test_a_look_stays_the_same_in_another_place_and_light_and_differs_from_another_coat():
    image = street((20, 30, RED, BLUE), (300, 90, RED, BLUE), (500, 50, GREEN, BLUE))
    darker = (image * 0.94).astype(np.uint8)
    where = boxes((20, 30), (300, 90), (500, 50))
    first, seen = looks_of(image, 1.0, where)
    second, _ = looks_of(darker, 1.0, where)
    assert first.shape == (3, LOOK_SIZE)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1.0, atol=1e-4)
    np.testing.assert_allclose(seen, 1.0)
    unlike, known = unlikeness(first, second)
    assert known.all()
    same = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
    assert unlike[same].max() < 0.5 * unlike[~same].min()


def test_upper_and_lower_half_are_not_mixed_up():
    image = street((20, 30, RED, BLUE), (300, 30, BLUE, RED))
    looks, _ = looks_of(image, 1.0, boxes((20, 30), (300, 30)))
    unlike, _ = unlikeness(looks, looks)
    assert unlike[0, 1] > 0.3


def test_a_look_is_taken_from_what_is_not_hidden():
    alone = street((100, 40, RED, WHITE))
    crossed = street((100, 40, RED, WHITE), (130, 60, GREEN, BLUE))
    one, _ = looks_of(alone, 1.0, boxes((100, 40)))
    two, seen = looks_of(crossed, 1.0, boxes((100, 40), (130, 60)))
    assert 0.3 < seen[0] < 0.8
    assert seen[1] == 1.0
    unlike, _ = unlikeness(one, two)
    # The edge of who is in front falls on a pixel that is both.
    assert unlike[0, 0] < 0.15 < 0.3 < unlike[0, 1]
    # All but hidden, or out of the picture: nothing is said.
    looks, seen = looks_of(crossed, 1.0, boxes((128, 58), (130, 60), (-58, 0), (700, 50)))
    assert seen.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert not looks[[0, 2, 3]].any()
    assert unlikeness(looks, looks)[1].sum() == 1


def test_the_small_picture_keeps_the_colours():
    image = np.repeat(np.repeat(street((20, 30, RED, BLUE), (300, 90, GREEN, BLUE)), 3, 0), 3, 1)
    small, scale = to_small_colour(image, 256)
    assert small.shape == (96, 256, 3)
    where = boxes((20, 30), (300, 90)) * 3
    unlike, _ = unlikeness(looks_of(small, scale, where)[0], looks_of(image, 1.0, where)[0])
    assert unlike.diagonal().max() < 0.1 < unlike[0, 1]


def test_grey_pictures_have_looks_of_lightness():
    grey = street((20, 30, RED, WHITE), (300, 90, WHITE, RED))[..., 1].copy()
    looks, _ = looks_of(grey, 1.0, boxes((20, 30), (300, 90)))
    assert unlikeness(looks, looks)[0][0, 1] > 0.05


def test_looks_change_by_part_and_unknown_ones_are_replaced():
    old = np.zeros((3, LOOK_SIZE), np.float32)
    new = np.zeros((3, LOOK_SIZE), np.float32)
    old[:2, 0], new[[0, 2], 1] = 1.0, 1.0
    look = mixed(old, new, np.full(3, 0.25, np.float32))
    np.testing.assert_allclose(look[:, :2] ** 2, [[0.75, 0.25], [1.0, 0.0], [0.0, 1.0]])


def run(frames, **parameters):
    """Ids by frame, left to right, of ((left, coat) ...) a frame; None: nobody is detected."""
    tracker = create_tracker('hybrid', **parameters)
    said = []
    for k, people in enumerate(frames):
        image = street(*((left, 60, coat, BLUE) for left, coat in people), seed=k)
        found = [[left, 60, left + BOX[0], 60 + BOX[1]] for left, _ in people]
        tracker.correct(k * FRAME_NS, detections(found))
        tracks = tracker.step(k * FRAME_NS, image)
        said.append(tracks.track_id[np.argsort(tracks.xyxy[:, 0])].tolist())
    return said


@pytest.mark.parametrize(('look_size_px', 'known_again'), [(256, True), (0, False)])
def test_somebody_comes_back_after_longer_than_motion_can_tell(look_size_px, known_again):
    away = 14
    frames = [[(100, RED), (400, GREEN)]] * 8
    frames += [[(400, GREEN)]] * away + [[(190, RED), (400, GREEN)]] * 3
    said = run(frames, look_size_px=look_size_px)
    assert said[7] == [1, 2]
    assert said[7 + away] == [2]
    assert said[-1] == ([1, 2] if known_again else [3, 2])


def test_somebody_else_in_that_place_is_somebody_else():
    frames = [[(100, RED)]] * 8 + [[]] * 14 + [[(120, WHITE)]] * 3
    assert run(frames)[-1] == [2]


def test_who_is_still_seen_stays_though_the_detector_misses_her_and_goes_when_she_is_not():
    tracker = create_tracker('hybrid')
    shown = []
    for k in range(24):
        left = 100 + 6 * k
        there, detected = k < 16, k < 10
        people = [(left, 60, RED, BLUE)] if there else []
        found = [[left, 60, left + BOX[0], 60 + BOX[1]]] if detected else []
        tracker.correct(k * FRAME_NS, detections(found))
        tracks = tracker.step(k * FRAME_NS, street(*people, seed=k))
        shown.append(tracks.source.tolist())
        if 10 <= k < 16:
            np.testing.assert_allclose(tracks.xyxy[0, 0], left, atol=6.0)
    assert shown[9:16] == [[TrackSource.DETECTED]] + [[TrackSource.PREDICTED]] * 6
    assert shown[16:] == [[]] * 8


def test_who_goes_between_two_detections_is_not_shown_where_she_was():
    tracker = create_tracker('hybrid')
    shown = []
    for k in range(14):
        if k < 8:
            tracker.correct(k * FRAME_NS, detections([[100, 60, 100 + BOX[0], 60 + BOX[1]]]))
        people = [(100, 60, RED, BLUE)] if k < 11 else []
        shown.append(len(tracker.step(k * FRAME_NS, street(*people, seed=k))))
    assert shown == [1] * 11 + [0] * 3


def test_two_who_change_places_between_detections_keep_their_ids():
    before, after = [(200, RED), (250, GREEN)], [(200, GREEN), (250, RED)]
    assert run([before] * 8 + [after] * 3)[-1] == [2, 1]
    assert run([before] * 8 + [after] * 3, look_size_px=0)[-1] == [1, 2]


@pytest.mark.parametrize('late', [1, 4])
def test_a_late_correction_with_pictures_gives_what_it_had_given_in_time(late):
    frames = 24
    everybody = [[(60 + 12 * k, RED), (520 - 12 * k, GREEN)] for k in range(frames)]
    trackers = create_tracker('hybrid'), create_tracker('hybrid')
    for k in range(frames + late):
        people = everybody[min(k, frames - 1)]
        image = street(*((left, 60, coat, BLUE) for left, coat in people), seed=k)
        for tracker, j in zip(trackers, (k, k - late), strict=True):
            if 0 <= j < frames and j % 2 == 0:
                found = [[left, 60, left + BOX[0], 60 + BOX[1]] for left, _ in everybody[j]]
                tracker.correct(j * FRAME_NS, detections(found))
        in_time, corrected = (tracker.step(k * FRAME_NS, image) for tracker in trackers)
    np.testing.assert_array_equal(in_time.track_id, corrected.track_id)
    np.testing.assert_allclose(in_time.xyxy, corrected.xyxy, atol=1e-3)


@pytest.mark.parametrize(
    'settings', [{'usual_speed': 0.0}, {'look_unlike': -1.0}, {'max_pace': 0.5}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(TrackingError, match=next(iter(settings))):
        create_tracker('hybrid', **settings)
