"""Windows: the context rule, every strategy by hand and as a property, and what is random about the random ones."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dkt_ray.data.history import Coded, Histories
from dkt_ray.data.windows import (
    STRATEGIES,
    Interactions,
    WindowConfig,
    Windows,
    context_segments,
    draw,
    length_weights,
    resample,
    sizes_of_tests,
)
from dkt_ray.errors import ConfigError
from dkt_ray.features.batch import Rows, SequenceBatch
from dkt_ray.features.chunks import encode_users
from dkt_ray.features.collate import collate, interactions, segments, window_segments
from dkt_ray.features.encoder import EncoderConfig
from dkt_ray.models.lstm_attention import LstmAttention, LstmAttentionConfig
from dkt_ray.models.network import Inputs, Network
from tests.contract import world as w


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


# A test is (head, mid); P has two questions, the others one.
PAPERS = {"P": (0, 0), "Q": (0, 1), "R": (1, 0), "S": (1, 1)}


def interactions_of(histories: list[list[str]]) -> Interactions:
    """One list per user; an item is a test and the number of the question in it, and `?` where the answer is hidden."""
    flat = [item for history in histories for item in history]
    test = np.array([sorted(PAPERS).index(item[0]) for item in flat], np.int32)
    question = np.array([10 * ord(item[0]) + int(item[1]) for item in flat], np.int32)
    head, mid = np.array([PAPERS[item[0]] for item in flat], np.int32).reshape(-1, 2).T
    correct = np.array([-1 if item.endswith("?") else index % 2 for index, item in enumerate(flat)], np.int8)
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
    return Interactions(offsets, correct, test, head, mid, sizes_of_tests(question, test))


# rows 0-6: P passed twice and begun again, with Q in between; row 7; none; rows 8-12: interleaved; row 13: hidden
FIXTURE = interactions_of(
    [["P1", "P2", "Q1", "P1", "P2", "P1", "R1"], ["Q1"], [], ["P1", "Q1", "R1", "S1", "P2?"], ["P1?"]]
)


def contents(windows: Windows) -> list[list[int]]:
    return [windows.order[start:stop].tolist() for start, stop in zip(windows.start, windows.stop, strict=True)]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("context", [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6], [7], [8, 9, 10, 11], [8, 9, 10, 11, 12], [13]]),
        ("last", [[3, 4, 5, 6], [7], [9, 10, 11, 12]]),
        ("sliding", [[0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6], [7], [8, 9, 10, 11], [9, 10, 11, 12]]),
        ("user_head_mid", [[0, 1], [2], [6], [7], [8, 12], [9], [10], [11]]),
        ("user_head", [[2, 3, 4, 5], [6], [7], [8, 9, 12], [10, 11]]),
        ("user_test", [[1, 3, 4, 5], [2], [6], [7], [8, 12], [9], [10], [11]]),
        ("chunk_tests", [[2, 3, 4, 5], [6], [7], [8, 9], [10, 11]]),  # [12] holds no known answer
        ("chunk_rows", [[0, 1, 2], [3, 4, 5], [6], [7], [8, 9, 10], [11, 12]]),
    ],
)
def test_strategies_by_hand(strategy, expected):
    config = WindowConfig(strategy=strategy, length=4, tests=2, rows=3)
    found = draw(FIXTURE, config, context=99)
    assert contents(found) == expected
    assert found.user.tolist() == [np.searchsorted([6, 7, 7, 12, 13], window[0]) for window in expected]
    blind = draw(FIXTURE, config.model_copy(update={"test_users": False}), context=99)
    assert contents(blind) == [window for window in expected if window[0] <= 7]
    if strategy != "context":
        assert np.array_equal(found.start, found.score_from)


def test_longer_windows_keep_everything():
    config = WindowConfig(tests=2)
    by_head = draw(FIXTURE, config.model_copy(update={"strategy": "user_head"}), context=100)
    assert contents(by_head)[0] == [0, 1, 2, 3, 4, 5]
    chunks = draw(FIXTURE, config.model_copy(update={"strategy": "chunk_tests"}), context=100)
    assert contents(chunks) == [[0, 1, 2, 3, 4, 5], [6], [7], [8, 9], [10, 11]]


def test_the_row_that_starts_a_chunk_counts_in_it():
    """By the reference's slip P Q | R S P would be two chunks of 2 tests: R was never counted."""
    rows = interactions_of([["P1", "Q1", "R1", "S1", "P1"]])
    assert contents(draw(rows, WindowConfig(strategy="chunk_tests", tests=2), 100)) == [[0, 1], [2, 3], [4]]


def test_a_pass_is_as_long_as_the_test_has_questions():
    rows = interactions_of([["P1", "P1", "P2"], ["P2"]])
    assert rows.test_size.tolist() == [2] * 4
    assert contents(draw(rows, WindowConfig(strategy="user_head_mid"), 100)) == [[0, 1], [3]]
    bigger = rows._replace(test_size=np.full(4, 3, np.int32))
    assert contents(draw(bigger, WindowConfig(strategy="user_head_mid"), 100)) == [[0, 1, 2], [3]]


def test_a_stride_that_leaves_rows_out_is_refused():
    with pytest.raises(ConfigError, match=r"windows\.stride is 5, more than the 4 rows"):
        draw(FIXTURE, WindowConfig(strategy="sliding", stride=5), context=4)


histories = st.lists(
    st.lists(st.tuples(st.sampled_from("PQRS"), st.sampled_from("12"), st.sampled_from(["", "", "?"])), max_size=25),
    max_size=5,
).map(lambda drawn: interactions_of([["".join(item) for item in history] for history in drawn]))
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


@given(st.sampled_from(list(STRATEGIES)), histories, st.integers(1, 30), st.booleans())
def test_a_window_holds_ascending_rows_of_one_user(strategy, rows, length, balanced):
    windows = draw(rows, WindowConfig(strategy=strategy, length=length, balanced=balanced), 1, seed=3, epoch=4)
    for user, start, stop, score_from in zip(*windows[1:], strict=True):
        assert start <= score_from < stop
        held = windows.order[start:stop]
        assert (np.diff(held) > 0).all()
        assert rows.offsets[user] <= held[0]
        assert held[-1] < rows.offsets[user + 1]
        assert len(held) <= (2 * length if strategy == "context" else length)


@settings(max_examples=300)
@given(strategy=st.sampled_from(list(STRATEGIES)), rows=histories)
def test_windows_cover_what_they_promise(strategy, rows):
    whole = len(rows.test) + 1
    windows = draw(rows, WindowConfig(strategy=strategy, length=4 if strategy == "sliding" else whole, tests=2), 1)
    held = contents(windows)
    flat = np.sort(np.concatenate([*held, []]).astype(int))
    known = np.flatnonzero(rows.correct >= 0)
    if strategy == "sliding":
        assert set(flat) >= set(known)
    elif strategy == "user_head_mid":
        passes = {}
        first = []
        for user in range(len(rows.offsets) - 1):
            for row in range(rows.offsets[user], rows.offsets[user + 1]):
                before = passes.setdefault((user, rows.test[row]), 0)
                passes[user, rows.test[row]] += 1
                if before < rows.test_size[row]:
                    first.append(row)
        assert set(flat) <= set(first)
        assert set(flat) >= set(first) & set(known)
    else:
        assert len(set(flat)) == len(flat)
        assert set(flat) >= set(known)
    key = {"user_head": rows.head, "user_test": rows.test, "user_head_mid": rows.test}.get(strategy)
    if key is not None:
        groups = [(user, key[window[0]]) for user, window in zip(windows.user, held, strict=True)]
        assert len(set(groups)) == len(groups)
        assert all(len(set(key[window])) == 1 for window in held)
    if strategy == "chunk_tests":
        assert all(len(set(rows.test[window])) <= 2 for window in held)
        for one, following in itertools.pairwise(held):
            if following[0] == one[-1] + 1 and following[0] not in rows.offsets:
                assert len(set(rows.test[[*one, following[0]]])) == 3


def equal_users(users: int, length: int) -> Interactions:
    rows = np.zeros(users * length, np.int32)
    return Interactions(np.arange(0, len(rows) + 1, length), (rows % 2).astype(np.int8), rows, rows, rows, rows + 1)


@pytest.mark.parametrize("epoch", range(3))
def test_random_starts_are_uniform(epoch):
    rows = equal_users(20_000, 13)
    windows = draw(rows, WindowConfig(strategy="random", length=4), 1, seed=7, epoch=epoch)
    start = windows.start - rows.offsets[:-1]
    table = np.bincount(start, minlength=10)
    assert len(table) == 10  # 0 to len - L
    assert ((table - 2000) ** 2 / 2000).sum() < 30  # 9 degrees of freedom: P < 1e-3


def test_random_windows_depend_on_seed_and_epoch_alone():
    rows = equal_users(50, 40)
    config = WindowConfig(strategy="random", length=4, balanced=True)

    def drawn(**key: int) -> list[list[int]]:
        return contents(draw(rows, config, 1, **key))

    assert drawn(seed=1, epoch=2) == drawn(seed=1, epoch=2)
    others = [drawn(seed=1, epoch=3), drawn(seed=2, epoch=2), drawn(seed=2, epoch=1), drawn(seed=-1, epoch=2)]
    assert all(other != drawn(seed=1, epoch=2) for other in others)
    still = [
        draw(rows, WindowConfig(strategy=name), 4, seed=s, epoch=e) for name in ("last",) for s, e in [(0, 0), (1, 1)]
    ]
    assert contents(still[0]) == contents(still[1])
    assert [WindowConfig(strategy=name).redrawn for name in STRATEGIES] == [name == "random" for name in STRATEGIES]


def test_a_history_of_l_rows_or_fewer_is_read_whole():
    windows = draw(equal_users(3, 5), WindowConfig(strategy="random", length=5), 1, seed=1, epoch=1)
    assert contents(windows) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]


def test_length_weights_as_defined():
    lengths = np.array([1, 49, 50, 99, 1199, 1200, 5000, 98])  # labels 0 0 1 1 23 24 24 1
    expected = np.array([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2, 1 / 3]) / 4
    np.testing.assert_allclose(length_weights(lengths), expected, rtol=1e-12)


def test_length_balanced_sampling_draws_every_length_as_often():
    lengths = np.repeat([10, 60, 2000], [9000, 900, 100])
    stop = np.cumsum(lengths)
    start = stop - lengths
    windows = Windows(np.arange(stop[-1]), np.arange(10_000), start, stop, start)
    drawn = resample(windows, np.random.default_rng(0))
    counts = np.bincount(np.searchsorted([10, 60, 2000], drawn.stop - drawn.start), minlength=3)
    assert counts.sum() == 10_000
    assert (np.abs(counts - 10_000 / 3) < 4 * np.sqrt(10_000 * 2 / 9)).all()
    assert len(np.unique(drawn.user)) < 10_000


@pytest.fixture(scope="module", params=["none", "test_run"])
def encoded(request) -> tuple[w.World, Rows]:
    world = w.World.of(w.students(25, seed=3, longest=40), EncoderConfig(bundle=request.param))
    return world, world.data.train


@pytest.mark.parametrize("context", [1, 3, 8])
def test_training_reads_the_context_rule_as_scoring_does(encoded, context):
    _, rows = encoded
    windows = draw(interactions(rows), WindowConfig(), context)
    found, expected = window_segments(windows, rows), segments(rows, rows, context)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(windows.order, np.arange(rows.rows))


def whole_batch(network: Network, rows: Rows, windows: Windows) -> SequenceBatch:
    flat = network.flatten(rows)
    return collate(flat, flat, window_segments(windows, rows), torch.from_numpy(windows.order))


@every_strategy
def test_a_target_reads_the_visible_rows_of_its_window(encoded, strategy):
    world, rows = encoded
    network = LstmAttention(LstmAttentionConfig(width=8), Inputs.of(world.state))
    windows = draw(interactions(rows), WindowConfig(strategy=strategy, length=6, tests=2), 6, epoch=1)
    batch = whole_batch(
        network, dataclasses.replace(rows, ids=rows.ids | {"question": np.arange(rows.rows) + 1}), windows
    )
    longest = int((windows.stop - windows.start).max())
    assert batch.past_answer.shape[1] <= max(longest - 1, 1)  # the last row is nobody's past
    reads = 0
    for number, held in enumerate(contents(windows)):
        scored = held[windows.score_from[number] - windows.start[number] :]
        assert batch.rows[number, : len(scored)].tolist() == scored
        for m, row in enumerate(scored):
            read = batch.past_ids[number, : batch.visible[number, m], 0] - 1
            assert read.tolist() == [r for r in held if rows.position[r] < rows.visible[row]]
            reads += len(read)
    assert reads, "no target reads anything: the test shows nothing"


def changed_from(histories: Histories, cut: np.ndarray, rng: np.random.Generator, what: str) -> Histories:
    """Other answers from position `cut[u]` of each user on, and with them other questions, concepts, times and tests.

    Args:
        what: answers; questions (rows keep their tests, and are shown together with the same rows); or tests.
    """
    position = np.arange(histories.rows) - np.repeat(histories.offsets[:-1], histories.lengths)
    later = position >= np.repeat(cut, histories.lengths)
    answers = np.where(later, 1 - histories.correct, histories.correct).astype(np.int8)
    if what == "answers":
        return dataclasses.replace(histories, correct=answers)

    def other(column: Coded, drawn: np.ndarray) -> Coded:
        return Coded(np.where(later, drawn, column.codes).astype(np.int32), column.values)

    question, concepts = (
        rng.integers(0, len(c.values), histories.rows) for c in (histories.question, histories.concepts)
    )
    if what == "questions":
        question = histories.question.codes // w.PER_TEST * w.PER_TEST + question % w.PER_TEST
    assert histories.timestamp is not None
    return dataclasses.replace(
        histories,
        question=other(histories.question, question),
        test=other(histories.test, question // w.PER_TEST),
        concepts=other(histories.concepts, concepts),
        correct=answers,
        timestamp=histories.timestamp + later * rng.integers(1, 10**9, histories.rows),
    )


@every_strategy
@pytest.mark.parametrize("what", ["answers", "questions", "tests"])
@torch.inference_mode()
def test_what_comes_later_changes_no_logit_of_a_window(encoded, strategy, what):
    """Histories are changed before they are encoded; the windows are those of the unchanged ones."""
    world, rows = encoded
    if what == "tests" and world.state.config.bundle == "test_run":
        what = "questions"  # another test would cut another run, and pad the batch to another width
    users = np.concatenate([np.flatnonzero(world.fold == k) for k in range(2)])
    histories = world.histories.select(users)
    network = LstmAttention(LstmAttentionConfig(width=8), Inputs.of(world.state)).eval()
    for seed in range(4):
        windows = draw(interactions(rows), WindowConfig(strategy=strategy, length=9, tests=2), 9, seed=seed, epoch=1)
        rng = np.random.default_rng(seed)
        cut = rows.visible[histories.offsets[:-1] + rng.integers(0, histories.lengths)]  # where some row's past ends
        noisy = encode_users(changed_from(histories, cut, rng, what), world.fold[users], world.state)
        before, after = whole_batch(network, rows, windows), whole_batch(network, noisy, windows)
        assert torch.equal(before.rows, after.rows)
        seen = rows.visible <= np.repeat(cut, histories.lengths)  # the row at the cut reads what stands before it
        blind = seen if what == "answers" else rows.position < np.repeat(cut, histories.lengths)
        real = before.rows >= 0
        unmoved = torch.zeros_like(real)
        unmoved[real] = torch.from_numpy(blind)[before.rows[real]]
        one, other = network(before), network(after)
        assert unmoved.any()
        assert torch.equal(other[unmoved], one[unmoved])
        assert not torch.equal(other[real], one[real])
