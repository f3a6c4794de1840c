"""What is drawn into an image."""

import numpy as np
import pytest

from edge_perception.media.drawing import Trails, draw_tracks, track_color
from edge_perception.types import Tracks, TrackSource


def tracks_at(*boxes, source=TrackSource.DETECTED):
    n = len(boxes)
    return Tracks(
        xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        score=np.ones(n, np.float32),
        class_id=np.zeros(n, np.int32),
        track_id=np.arange(1, n + 1, dtype=np.int64),
        age_s=np.zeros(n, np.float32),
        time_since_detection_s=np.zeros(n, np.float32),
        source=np.full(n, source, np.uint8),
    )


@pytest.fixture
def image():
    return np.zeros((240, 320, 3), np.uint8)


def edge_pixels(image):
    """Pixels of the right edge of a box at 100, 60 to 200, 180, away from its corners."""
    return image[70:170, 198:203].max((1, 2)) > 60


def test_detected_box_is_closed_and_predicted_box_is_dashed(image):
    solid = draw_tracks(image.copy(), tracks_at((100, 60, 200, 180)), {0: 'person'})
    dashed = draw_tracks(
        image, tracks_at((100, 60, 200, 180), source=TrackSource.PREDICTED), {0: 'person'}
    )
    assert edge_pixels(solid).all()
    assert 0.3 < edge_pixels(dashed).mean() < 0.8
    assert solid[120, 150].max() == 0


def test_trail_leads_to_where_the_track_was_and_ends_after_its_time(image):
    trails = Trails(length_s=1.0)
    for i in range(15):
        trails.add(i * 100_000_000, tracks_at((20 + 10 * i, 40, 40 + 10 * i, 90)))
    points = trails.of(1)
    np.testing.assert_array_equal(points[:, 1], 90)
    np.testing.assert_array_equal(points[:, 0], 30 + 10 * np.arange(4, 15))
    draw_tracks(image, tracks_at((160, 40, 180, 90)), {}, trails)
    assert image[90, 100].max() > 60
    assert image[90, 50].max() == 0


def test_trails_begin_anew_when_stamps_jump_back_and_forget_who_is_gone():
    trails = Trails(length_s=1.0)
    trails.add(10**10, tracks_at((0, 0, 10, 10)))
    trails.add(10**9, tracks_at((20, 0, 40, 10)))
    np.testing.assert_array_equal(trails.of(1), [[30, 10]])
    trails.add(10**10, tracks_at())
    assert len(trails.of(1)) == 0


@pytest.mark.parametrize('box', [(-1e9, -1e9, 1e9, 1e9), (1e6, 1e6, 2e6, 2e6), (5, 5, 5, 5)])
@pytest.mark.parametrize('source', TrackSource)
def test_boxes_far_outside_and_without_area_are_no_trouble(image, box, source):
    trails = Trails()
    trails.add(0, tracks_at(box))
    draw_tracks(image, tracks_at(box, source=source), {}, trails)


def test_colours_of_the_first_ids_differ():
    colors = np.array([track_color(i) for i in range(1, 9)], float)
    distance = np.abs(colors[:, None] - colors).max(2) + 255 * np.eye(8)
    assert distance.min() > 20
