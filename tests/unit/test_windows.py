"""The context rule as an index of segments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dkt_ray.data.windows import context_segments


def test_one_user_by_hand():
    segments = context_segments(np.array([5]), 2)
    assert segments.start.tolist() == [0, 0, 2]
    assert segments.stop.tolist() == [2, 4, 5]
    assert segments.score_from.tolist() == [0, 2, 4]


def test_a_user_with_one_row_and_one_without_any():
    segments = context_segments(np.array([0, 1]), 100)
    assert [column.tolist() for column in segments] == [[1], [0], [1], [0]]


def test_no_users():
    assert all(len(column) == 0 for column in context_segments(np.empty(0, np.int64), 3))


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 12))
def test_every_row_is_scored_once_under_the_context_rule(lengths, context):
    segments = context_segments(np.array(lengths, np.int64), context)
    scored = []
    for user, start, stop, score_from in zip(*segments, strict=True):
        assert 0 <= start <= score_from < stop <= lengths[user]
        for t in range(score_from, stop):
            assert start == max(0, (t // context - 1) * context)
            scored.append((user, t))
    assert scored == [(user, t) for user, length in enumerate(lengths) for t in range(length)]


@pytest.mark.parametrize("context", [1, 7, 100])
def test_one_pass_reads_each_row_at_most_twice(context):
    lengths = np.array([3, 250, 1000])
    segments = context_segments(lengths, context)
    assert (segments.stop - segments.start).sum() <= 2 * lengths.sum()
