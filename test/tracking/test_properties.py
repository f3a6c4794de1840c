"""What holds for every tracker on any input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from walking import FRAME_NS, detections, walkers

from edge_perception.tracking import TRACKERS, create_tracker
from edge_perception.types import Detections

EVERY_TRACKER = pytest.mark.parametrize('name', TRACKERS)

coordinate = st.floats(0, 1000, width=32)
anything = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def frames(draw, value=coordinate, *, count=12, most=6):
    """Detections of some frames: boxes anywhere, and of any shape."""
    result = []
    for _ in range(count):
        n = draw(st.integers(0, most))
        corners = draw(st.lists(value, min_size=4 * n, max_size=4 * n))
        scores = draw(st.lists(st.floats(0, 1, width=32), min_size=n, max_size=n))
        classes = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
        boxes = np.array(corners, np.float32).reshape(n, 4)
        if value is coordinate:
            boxes = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:] / 5 + 1), 1)
        result.append(Detections(boxes, np.array(scores, np.float32), np.array(classes, np.int32)))
    return result


def run(tracker, seen, every=1):
    put_out = []
    for k, found in enumerate(seen):
        if k % every == 0:
            tracker.correct(k * FRAME_NS, found)
        put_out.append(tracker.step(k * FRAME_NS))
    return put_out


def assert_equal(first, second):
    for one, other in zip(first, second, strict=True):
        for field in ('xyxy', 'score', 'class_id', 'track_id', 'age_s', 'source'):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


@EVERY_TRACKER
@settings(max_examples=30)
@given(seen=frames(), every=st.integers(1, 3))
def test_ids_are_never_shared_and_never_come_back_from_the_dead(name, seen, every):
    put_out = run(create_tracker(name), seen, every)
    born = {}
    for k, tracks in enumerate(put_out):
        ids = tracks.track_id.tolist()
        assert len(ids) == len(set(ids))
        assert all(track_id >= 1 for track_id in ids)
        for track_id, age_s in zip(ids, tracks.age_s, strict=True):
            first = k * 0.1 - float(age_s)
            # The same id always speaks of a track that began at the same time.
            assert born.setdefault(track_id, first) == pytest.approx(first, abs=1e-4)


@EVERY_TRACKER
@settings(max_examples=30)
@given(seen=frames(), seed=st.integers(0, 1000))
def test_the_order_of_detections_means_nothing(name, seen, seed):
    random = np.random.default_rng(seed)
    shuffled = [found[random.permutation(len(found))] for found in seen]
    assert_equal(run(create_tracker(name), seen), run(create_tracker(name), shuffled))


@EVERY_TRACKER
@settings(max_examples=20)
@given(seen=frames(), others=frames())
def test_two_trackers_never_influence_each_other(name, seen, others):
    alone = run(create_tracker(name), seen)
    first, second = create_tracker(name), create_tracker(name)
    beside = []
    for k, (found, other) in enumerate(zip(seen, others, strict=True)):
        first.correct(k * FRAME_NS, found)
        second.correct(k * FRAME_NS, other)
        second.step(k * FRAME_NS)
        beside.append(first.step(k * FRAME_NS))
    assert_equal(alone, beside)


@EVERY_TRACKER
@pytest.mark.filterwarnings('error')
@settings(max_examples=40)
@given(
    seen=frames(anything),
    stamps=st.lists(st.integers(-(2**40), 2**62), min_size=12, max_size=12),
    in_order=st.booleans(),
)
def test_no_finite_input_raises(name, seen, stamps, in_order):
    tracker = create_tracker(name)
    for k, found in enumerate(seen):
        stamp_ns = k * FRAME_NS if in_order else stamps[k]
        tracker.correct(stamp_ns, found)
        tracks = tracker.step(stamp_ns)
        assert np.isfinite(tracks.xyxy).all()


@settings(max_examples=15)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seen=frames(most=3),
    seed=st.integers(0, 99),
)
def test_no_image_raises(shape, seen, seed):
    random = np.random.default_rng(seed)
    tracker = create_tracker('hybrid')
    for k, found in enumerate(seen):
        tracker.correct(k * FRAME_NS, found)
        image = random.integers(0, 256, (*shape, 3) if k % 3 else shape, np.uint8)
        tracks = tracker.step(k * FRAME_NS, None if k == 5 else image)
        assert np.isfinite(tracks.xyxy).all()


@EVERY_TRACKER
def test_frames_without_objects_age_the_tracks(name):
    tracker = create_tracker(name)
    run(tracker, [detections(walkers(2, k)) for k in range(6)])
    ages = []
    for k in range(6, 9):
        tracks = tracker.step(k * FRAME_NS)
        ages.append(tracks.age_s.tolist())
    assert ages == [pytest.approx([k * 0.1] * 2) for k in (6, 7, 8)]
    for k in range(9, 60):
        tracker.correct(k * FRAME_NS, detections([]))
        tracks = tracker.step(k * FRAME_NS)
    assert len(tracks) == 0
