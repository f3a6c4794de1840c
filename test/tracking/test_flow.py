"""Motion of the picture: of figures, of the camera, and what a tracker makes of it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from walking import FRAME_NS, detections

from edge_perception.tracking import create_tracker
from edge_perception.tracking.flow import PictureMotion
from edge_perception.tracking.picture import to_small_grey

INTERVAL_S = 0.1
UNKNOWN = np.full(1, 1e6)
AT_REST = np.zeros((2, 1))


def texture(height, width, seed):
    random = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(random.normal(0, 1, (height, width)), (0, 0), 2)
    return np.clip(128 + noise * (50 / noise.std()), 0, 255).astype(np.uint8)


def scene(*, figure_xy=(100, 60), camera_xy=(0, 0), post=False):
    """(240, 320) grey: a figure of 40x100 before a background that the camera pans over."""
    background = texture(340, 420, 1)
    x, y = 50 + camera_xy[0], 50 + camera_xy[1]
    image = background[y : y + 240, x : x + 320].copy()
    left, top = figure_xy
    image[top : top + 100, left : left + 40] = texture(100, 40, 2)
    if post:
        image[:, 100:140] = texture(240, 40, 3)
    return image


def motion(before, after, scale=1.0):
    return PictureMotion(before, after, scale=scale, interval_s=INTERVAL_S)


def box(x=100, y=60):
    return np.array([[x, y, x + 40, y + 100]], float)


@pytest.mark.parametrize('shift', [(0, 0), (4, 0), (-3, 2), (0, -5), (12, 3)])
def test_a_figure_moves_before_a_still_background(shift):
    after = scene(figure_xy=(100 + shift[0], 60 + shift[1]))
    seen = motion(scene(), after).of_boxes(box(), AT_REST, UNKNOWN)
    np.testing.assert_allclose(seen.velocity[:, 0] * INTERVAL_S, shift, atol=0.2)
    assert seen.support[0] > 0.5


@pytest.mark.parametrize('pan', [(3, 0), (-2, 4)])
def test_the_camera_pans_and_the_figure_stands(pan):
    # The camera goes right: the background, and who stands there, goes left.
    after = scene(figure_xy=(100 - pan[0], 60 - pan[1]), camera_xy=pan)
    picture = motion(scene(), after)
    centre = np.array([[160.0], [120.0]])
    camera_shift = picture.camera_velocity(centre)[:, 0] * INTERVAL_S
    np.testing.assert_allclose(camera_shift, (-pan[0], -pan[1]), atol=0.1)
    seen = picture.of_boxes(box(), AT_REST, UNKNOWN)
    np.testing.assert_allclose(seen.velocity[:, 0] * INTERVAL_S, (0, 0), atol=0.2)


def test_a_still_camera_does_not_make_boxes_creep():
    assert not motion(scene(), scene(figure_xy=(103, 60))).camera.any()


def test_nothing_is_said_of_a_picture_without_texture():
    grey = np.full((240, 320), 90, np.uint8)
    seen = motion(grey, grey).of_boxes(box(), AT_REST, UNKNOWN)
    assert seen.support[0] == 0.0


def test_a_box_behind_another_is_left_to_the_filter():
    boxes = np.array([[100, 60, 140, 160], [105, 65, 145, 175]], float)
    unknown, at_rest = np.full(2, 1e6), np.zeros((2, 2))
    seen = motion(scene(), scene(figure_xy=(103, 60))).of_boxes(boxes, at_rest, unknown)
    assert seen.support[0] == 0.0
    assert seen.support[1] > 0.0


def test_what_vanishes_is_not_followed():
    seen = motion(scene(), scene(post=True)).of_boxes(box(), AT_REST, UNKNOWN)
    assert seen.support[0] == 0.0


def test_answers_do_not_depend_on_earlier_questions():
    first = motion(scene(), scene(figure_xy=(104, 61)))
    second = motion(scene(), scene(figure_xy=(104, 61)))
    for x in (20, 60, 99, 150, 240):
        first.of_boxes(box(x), AT_REST, UNKNOWN)
    one, other = (m.of_boxes(box(), AT_REST, UNKNOWN) for m in (first, second))
    np.testing.assert_array_equal(one.velocity, other.velocity)
    np.testing.assert_array_equal(one.support, other.support)


@pytest.mark.parametrize(
    ('shape', 'small_hw', 'scale'),
    [
        ((1080, 1920, 3), (252, 448), 448 / 1920),
        ((576, 768, 3), (336, 448), 448 / 768),
        ((2160, 3840), (252, 448), 448 / 3840),
        ((240, 320, 3), (240, 320), 1.0),
        ((1, 4000, 3), (1, 448), 448 / 4000),
    ],
)
def test_any_image_becomes_small_and_grey(shape, small_hw, scale):
    grey, got = to_small_grey(np.full(shape, 77, np.uint8), 448)
    assert grey.shape == small_hw
    assert grey.dtype == np.uint8
    assert got == pytest.approx(scale)
    np.testing.assert_array_equal(grey, 77)


@pytest.mark.parametrize(('width', 'height'), [(1280, 720), (1920, 1080), (3840, 2160)])
def test_a_large_image_tells_motion_as_well(width, height):
    shift = (width // 100 + 3, -5)
    view = cv2.resize(texture(300, 520, 4), (width + 100, height + 20))
    # Noise of a sensor, another in each image.
    random = np.random.default_rng(5)
    images = []
    for x, y in ((0, 5), (shift[0], 5 + shift[1])):
        part = view[10 - y : 10 - y + height, 60 - x : 60 - x + width].astype(np.float32)
        noisy = part[..., None] + random.normal(0, 6, (height, width, 3)).astype(np.float32)
        images.append(np.clip(noisy, 0, 255).astype(np.uint8))
    (before, scale), (after, _) = (to_small_grey(image, 448) for image in images)
    picture = motion(before, after, scale)
    middle = np.array([[width / 2], [height / 2]])
    seen = picture.camera_velocity(middle)[:, 0] * INTERVAL_S
    np.testing.assert_allclose(seen * scale, np.array(shift) * scale, atol=0.05)


def follow(images, *, use_images):
    """Where a tracker puts a figure that was detected on the first frame only."""
    tracker = create_tracker('hybrid')
    tracker.correct(0, detections(box().astype(np.float32)))
    for k, image in enumerate(images):
        tracks = tracker.step(k * FRAME_NS, image if use_images else None)
    return tracker, tracks


def test_boxes_follow_the_picture_where_a_filter_knows_nothing():
    images = [scene(figure_xy=(100 + 5 * k, 60)) for k in range(8)]
    tracker, tracks = follow(images, use_images=True)
    np.testing.assert_allclose(tracks.xyxy, box(135), atol=2.0)
    assert tracker.statistics.flow_followed == 7
    assert tracker.statistics.flow_failed == 0
    _, tracks = follow(images, use_images=False)
    np.testing.assert_allclose(tracks.xyxy, box(100), atol=1e-3)


def test_boxes_stay_on_people_while_the_camera_pans():
    images = [scene(figure_xy=(100 - 4 * k, 60), camera_xy=(4 * k, 0)) for k in range(8)]
    _, tracks = follow(images, use_images=True)
    np.testing.assert_allclose(tracks.xyxy, box(72), atol=2.0)


def test_a_late_first_detection_is_carried_to_now_by_the_stored_pictures():
    images = [scene(figure_xy=(100 + 5 * k, 60)) for k in range(8)]
    tracker = create_tracker('hybrid')
    for k, image in enumerate(images[:7]):
        tracker.step(k * FRAME_NS, image)
    tracker.correct(0, detections(box().astype(np.float32)))
    tracks = tracker.step(7 * FRAME_NS, images[7])
    np.testing.assert_allclose(tracks.xyxy, box(135), atol=2.0)
    in_time, expected = follow(images, use_images=True)
    np.testing.assert_allclose(tracks.xyxy, expected.xyxy, atol=1e-3)
    assert in_time.statistics.late_corrections == 0


def test_pictures_of_another_size_begin_anew():
    tracker = create_tracker('hybrid')
    tracker.correct(0, detections(box().astype(np.float32)))
    tracker.step(0, scene())
    tracker.step(FRAME_NS, scene()[:200, :200])
    assert tracker.statistics.flow_followed == 0
    assert len(tracker.step(2 * FRAME_NS, scene()[:200, :200])) == 1
    assert tracker.statistics.flow_followed == 1
