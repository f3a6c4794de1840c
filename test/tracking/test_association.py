"""Similarities of boxes and the assignment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_perception.tracking import association

BOXES = st.lists(
    st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 30)] * 2), min_size=1, max_size=6
).map(lambda rows: np.array([[x, y, x + w, y + h] for x, y, w, h in rows], float))
ONE = [[0.0, 0.0, 10.0, 10.0]]


@pytest.mark.parametrize(
    ('other', 'iou', 'giou', 'diou'),
    [
        ([0, 0, 10, 10], 1.0, 1.0, 1.0),  # the same
        ([5, 0, 15, 10], 1 / 3, 1 / 3, 1 / 3 - 25 / 325),  # half beside
        ([10, 0, 20, 10], 0.0, 0.0, -100 / 500),  # touching
        ([20, 0, 30, 10], 0.0, -1 / 3, -400 / 1000),  # apart
        ([2, 2, 8, 8], 0.36, 0.36, 0.36),  # inside
        ([5, 5, 5, 5], 0.0, 0.0, 0.0),  # no area
    ],
)
def test_similarities(other, iou, giou, diou):
    first, second = np.array(ONE), np.array([other], float)
    assert association.intersection_over_union(first, second)[0, 0] == pytest.approx(iou)
    assert association.generalized_iou(first, second)[0, 0] == pytest.approx(giou)
    assert association.distance_iou(first, second)[0, 0] == pytest.approx(diou)


def test_widened_boxes_overlap_where_the_boxes_do_not():
    first, second = np.array(ONE), np.array([[12.0, 0.0, 22.0, 10.0]])
    pair = np.zeros(1, np.intp)
    similarity = association.paired_iou(first, pair, second, pair, np.array([5.0]))
    assert similarity[0] == pytest.approx(8 * 20 / (2 * 400 - 8 * 20))


@given(first=BOXES, second=BOXES, margin=st.sampled_from((0.0, 0.5, 3.0, 20.0)))
def test_boxes_are_near_where_their_iou_is_above_zero(first, second, margin):
    margins = np.full(len(first), margin)
    rows, columns = association.pairs_of(np.ones((len(first), len(second)), bool))
    iou = association.paired_iou(first, rows, second, columns, margins)
    assert association.near(first, second, margins).all(), 'these are few'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(association, '_FEW_PAIRS', 0)
        near = association.near(first, second, margins)
        dense = association.intersection_over_union(first, second)
    np.testing.assert_array_equal(near.ravel(), iou > 0)
    if not margin:
        np.testing.assert_array_equal(dense.ravel(), iou)


EDGE = st.floats(-8.0, 8.0)


@given(
    moved=st.tuples(EDGE, EDGE, EDGE, EDGE),
    limit=st.sampled_from((0.0, 0.1, 0.3, 0.7, 1.0)),
)
def test_pairs_that_overlap_enough_are_those_whose_iou_is(moved, limit):
    first = np.array([[0.0, 0.0, 20.0, 30.0]])
    second = np.array([[0.0, 0.0, 20.0, 30.0]]) + moved
    pair = np.zeros(1, np.intp)
    iou = association.paired_iou(first, pair, second, pair)
    enough = association.overlap_enough(first, pair, second, pair, limit)
    if abs(iou[0] - limit) > 1e-9:
        assert enough[0] == (iou[0] > limit)


@settings(max_examples=60)
@given(
    similarity=st.integers(1, 5).flatmap(
        lambda n: st.integers(1, 5).flatmap(
            lambda m: st.lists(st.floats(-1, 1), min_size=n * m, max_size=n * m).map(
                lambda values: np.array(values).reshape(n, m)
            )
        )
    ),
    limit=st.floats(-0.5, 0.9),
)
def test_no_other_assignment_is_worth_more(similarity, limit):
    rows, columns = association.assign(similarity, limit)
    assert len(set(rows)) == len(rows)
    assert len(set(columns)) == len(columns)
    assert (similarity[rows, columns] >= limit).all()

    n, m = similarity.shape
    best = 0.0
    for size in range(1, min(n, m) + 1):
        for chosen in itertools.combinations(range(n), size):
            for others in itertools.permutations(range(m), size):
                worth = similarity[list(chosen), list(others)] - limit
                if (worth >= 0).all():
                    best = max(best, worth.sum())
    assert (similarity[rows, columns] - limit).sum() == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize('density', [0.002, 0.02, 0.2])
def test_a_crowd_is_assigned_as_well_as_by_the_plain_way(monkeypatch, density):
    random = np.random.default_rng(1)
    similarity = np.where(random.random((90, 80)) < density, random.random((90, 80)), 0.0)
    quick = association.assign(similarity, 0.1)
    monkeypatch.setattr(association, '_FEW', 1000)
    plain = association.assign(similarity, 0.1)
    assert similarity[quick].sum() == pytest.approx(similarity[plain].sum())
    assert (np.diff(quick[0]) > 0).all()


def test_nothing_to_assign():
    for shape in ((0, 0), (0, 3), (3, 0), (2, 2)):
        rows, columns = association.assign(np.zeros(shape), 0.5)
        assert len(rows) == len(columns) == 0
