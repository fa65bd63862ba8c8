"""Segments follow the context rule, batches hold every segment once, and the gather puts each row where it belongs."""

import numpy as np
import pytest
import torch

from dkt_ray.data.windows import context_segments
from dkt_ray.features.batch import NO_ANSWER, WAS_HIDDEN, WAS_RIGHT, WAS_WRONG, Rows
from dkt_ray.features.collate import CLIP, Scale, batches, collate, flatten, segments

SCALE = Scale(np.array([10.0, 0.0]), np.array([2.0, 1.0]))


def rows_of(lengths: list[int], positions: list[int] | None = None, visible: list[int] | None = None) -> Rows:
    """Rows whose ids tell who they are: `question` is 100 * (user + 1) + position."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    user = np.repeat(np.arange(len(lengths)), lengths)
    position = np.array(positions if positions is not None else np.arange(offsets[-1]) - offsets[user], np.int32)
    count = int(offsets[-1])
    question = (100 * (user + 1) + position).astype(np.int32)
    return Rows(
        offsets=offsets,
        ids={"question": question, "test": question + 1, "head": question + 2},
        concepts=np.stack([question, np.zeros_like(question)], 1),
        numbers=np.stack([position, np.full(count, 1e6)], 1).astype(np.float32),
        correct=(position % 3 - 1).astype(np.int8),
        position=position,
        visible=np.array(visible, np.int32) if visible is not None else position,
    )


def flat(rows: Rows) -> object:
    return flatten(rows, ("question", "head"), SCALE)


@pytest.mark.parametrize("context", [1, 3, 4, 100])
def test_segments_of_whole_histories_are_the_windows_of_the_context_rule(context):
    rows = rows_of([9, 0, 1, 4, 12])
    found = segments(rows, rows, context)
    window = context_segments(np.diff(rows.offsets), context)
    first = rows.offsets[window.user]
    # the last row of a segment is nobody's past
    expected = np.stack([window.start, window.stop - 1, window.score_from, window.stop], 1) + first[:, None]
    np.testing.assert_array_equal(found, expected)


def test_targets_after_the_history_read_its_last_blocks():
    past = rows_of([9, 0, 3])
    targets = rows_of([2, 1, 0], positions=[9, 9, 0])
    # 9 // 4 = block 2 reads from 4 on; a user without a past reads nothing; a user without targets has no segment
    assert segments(past, targets, 4).tolist() == [[4, 9, 0, 2], [9, 9, 2, 3]]
    none = rows_of([0, 0, 0])
    assert segments(past, none, 4).shape == (0, 4)


def test_rows_that_no_target_may_read_are_left_out():
    past = rows_of([8], visible=[0, 0, 0, 0, 4, 4, 4, 4])
    assert segments(past, past, 8).tolist() == [[0, 4, 0, 8]]


def test_a_block_whose_targets_may_not_read_it_yet():
    past = rows_of([8], visible=[0] * 8)
    assert segments(past, past, 2).tolist() == [[0, 0, 0, 2], [0, 0, 2, 4], [2, 2, 4, 6], [4, 4, 6, 8]]
    batch = collate(flat(past), flat(past), segments(past, past, 2))
    assert batch.visible.tolist() == [[0, 0]] * 4


@pytest.mark.parametrize("shuffle", [None, 0])
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_batches_hold_every_segment_once_within_the_budget(shuffle, budget):
    rng = np.random.default_rng(1)
    rows = rows_of(rng.integers(0, 60, 50).tolist())
    parts = segments(rows, rows, 10)
    found = list(batches(parts, budget, None if shuffle is None else np.random.default_rng(shuffle)))
    assert sorted(map(tuple, np.concatenate(found))) == sorted(map(tuple, parts))
    for part in found:
        padded = len(part) * ((part[:, 1] - part[:, 0]).max() + (part[:, 3] - part[:, 2]).max())
        assert padded <= budget or len(part) == 1
    assert (len(found) == 1) == (budget == 10_000)


@pytest.mark.parametrize("most", [0, 30, 10_000])
def test_a_batch_ends_where_padding_would_cost_more_than_another_one(most):
    past = np.sort(np.random.default_rng(2).integers(0, 60, 50))
    parts = np.stack([0 * past, past, 0 * past, 0 * past + 1], axis=1)
    found = list(batches(parts[::-1], 10_000, most_padding=most))
    assert sorted(map(tuple, np.concatenate(found))) == sorted(map(tuple, parts))

    def padding(lengths):
        return int((lengths.max() - lengths).sum())

    for part, following in zip(found, [*found[1:], None], strict=True):
        assert padding(part[:, 1]) <= most
        if following is not None:  # no batch could have been longer
            assert padding(np.append(part[:, 1], following[0, 1])) > most


def test_shuffled_batches_depend_on_the_generator_alone():
    rows = rows_of([30, 7, 22, 41, 5, 18])
    parts = segments(rows, rows, 5)

    def order(seed: int) -> list[list[int]]:
        return [part[:, 2].tolist() for part in batches(parts, 60, np.random.default_rng(seed))]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_the_gather_puts_rows_answers_and_padding_in_place():
    rows = rows_of([5, 2])
    batch = collate(flat(rows), flat(rows), segments(rows, rows, 3))
    assert batch.past_ids[..., 0].tolist() == [[100, 101, 0, 0], [100, 101, 102, 103], [200, 0, 0, 0]]
    assert batch.past_ids[0, 1].tolist() == [101, 103]  # question and head, as asked for
    assert batch.target_ids[..., 0].tolist() == [[100, 101, 102], [103, 104, 0], [200, 201, 0]]
    assert batch.past_concepts.tolist()[2] == [[200], [0], [0], [0]]  # the empty concept column is gone
    assert batch.rows.tolist() == [[0, 1, 2], [3, 4, -1], [5, 6, -1]]
    assert batch.visible.tolist() == [[0, 1, 2], [3, 4, 0], [0, 1, 0]]
    assert batch.correct.tolist() == [[-1, 0, 1], [-1, 0, -1], [-1, 0, -1]]
    answers = [WAS_HIDDEN, WAS_WRONG, WAS_RIGHT, WAS_HIDDEN]
    assert batch.past_answer.tolist() == [[*answers[:2], 0, 0], answers, [WAS_HIDDEN, 0, 0, 0]]
    assert NO_ANSWER == 0
    dtypes = {name: tensor.dtype for name, tensor in vars(batch).items()}
    floats = {"past_numbers", "target_numbers", "correct"}
    ids = {"past_ids", "past_concepts", "target_ids", "target_concepts"}
    expected = dict.fromkeys(floats, torch.float32) | dict.fromkeys(ids, torch.int32)
    assert dtypes == {name: expected.get(name, torch.int64) for name in dtypes}


def test_visible_counts_from_the_first_row_of_the_segment():
    rows = rows_of([9])
    batch = collate(flat(rows), flat(rows), segments(rows, rows, 3))
    assert batch.past_ids[2, :, 0].tolist() == [103, 104, 105, 106, 107]
    assert batch.visible[2].tolist() == [3, 4, 5]


def test_numbers_are_standardised_clipped_and_zero_at_padding():
    rows = rows_of([3, 1])
    batch = collate(flat(rows), flat(rows), segments(rows, rows, 8))
    assert batch.target_numbers[0].tolist() == [[-5.0, CLIP], [-4.5, CLIP], [-4.0, CLIP]]
    assert batch.target_numbers[1].tolist() == [[-5.0, CLIP], [0, 0], [0, 0]]


def test_a_batch_without_any_past_still_has_one_padded_row():
    past, targets = rows_of([0]), rows_of([2], positions=[0, 0])
    batch = collate(flat(past), flat(targets), segments(past, targets, 4))
    assert batch.past_answer.tolist() == [[NO_ANSWER]]
    assert batch.visible.tolist() == [[0, 0]]
