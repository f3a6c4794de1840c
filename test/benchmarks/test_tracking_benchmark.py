"""Cost of a step: motion and association by the number of tracks, and the flow.

Run: make bench ARGS=test/benchmarks/test_tracking_benchmark.py

Times are of one core. The first benchmark is a yardstick: 198 operations on arrays of 40 numbers,
which is what motion and association are made of. It took 79 us where the others were measured;
on a slower or busier machine divide by what it takes there.
"""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from edge_perception.tracking import TRACKERS, create_tracker
from edge_perception.tracking.picture import to_small_grey
from edge_perception.types import Detections

FRAME_NS = 33_333_333


def people(count, frame):
    """Detections of people who walk slowly on a wide grid."""
    columns = int(np.ceil(np.sqrt(count)))
    place = np.arange(count)
    left = (place % columns) * 60.0 + frame % 200
    top = (place // columns) * 140.0
    boxes = np.stack((left, top, left + 40, top + 100), 1).astype(np.float32)
    return Detections(boxes, np.full(count, 0.9, np.float32), np.zeros(count, np.int32))


def test_yardstick(benchmark):
    start = np.arange(40.0).reshape(4, 10)

    def operations():
        values = start
        for _ in range(66):
            values = np.maximum(values + start, start) * 0.5
        return values

    assert benchmark(operations).shape == (4, 10)


@pytest.mark.parametrize('count', [10, 50, 200, 500])
@pytest.mark.parametrize('name', TRACKERS)
def test_motion_and_association(benchmark, name, count):
    tracker = create_tracker(name)
    seen = [people(count, frame) for frame in range(200)]
    frames = itertools.count()

    def step():
        frame = next(frames)
        tracker.correct(frame * FRAME_NS, seen[frame % 200])
        return tracker.step(frame * FRAME_NS)

    for _ in range(10):
        step()
    assert len(benchmark(step)) == count


@pytest.fixture
def one_core():
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)


def pictures(height):
    """A textured scene that the camera pans over, 16:9."""
    width = height * 16 // 9
    random = np.random.default_rng(0)
    scene = cv2.GaussianBlur(random.integers(0, 256, (height, width + 64, 3), np.uint8), (0, 0), 3)
    return [np.ascontiguousarray(scene[:, k : k + width]) for k in (0, 2, 4, 6, 8, 6, 4, 2)]


@pytest.mark.parametrize('height', [576, 1080, 2160])
def test_small_grey_image(benchmark, one_core, height):
    image = pictures(height)[0]
    grey, _ = benchmark(to_small_grey, image, 448)
    assert grey.shape == (252, 448)


@pytest.mark.parametrize('height', [576, 1080, 2160])
def test_following_the_picture_with_20_tracks(benchmark, one_core, height):
    images = pictures(height)
    width = images[0].shape[1]
    left = (np.arange(20) % 10) * (width / 10) + 10.0
    top = (np.arange(20) // 10) * (height / 2) + 10.0
    boxes = np.stack((left, top, left + width / 25, top + height / 5), 1).astype(np.float32)
    seen = Detections(boxes, np.full(20, 0.9, np.float32), np.zeros(20, np.int32))
    tracker = create_tracker('hybrid')
    frames = itertools.count()

    def step():
        frame = next(frames)
        return tracker.step(frame * FRAME_NS, images[frame % len(images)])

    def fresh_detections():
        frame = next(frames)
        tracker.correct(frame * FRAME_NS, seen)
        tracker.step(frame * FRAME_NS, images[frame % len(images)])

    tracks = benchmark.pedantic(step, setup=fresh_detections, rounds=100)
    assert len(tracks) == 20
