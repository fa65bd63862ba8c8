"""Evaluation sets and out-of-fold tables: what is the same stays comparable, what is not is refused by name."""

import numpy as np
import pyarrow as pa
import pytest

from dkt_ray.data.history import Coded
from dkt_ray.errors import ConfigError, InputError
from dkt_ray.features.encoder import EncoderConfig, encode, fit_histories
from dkt_ray.training.protocol import (
    OOF_SCHEMA,
    EvaluationSet,
    Scored,
    align_members,
    comparable,
    evaluation_set,
    locate,
    scored_rows,
)
from tests.builders import random_histories
from tests.datasets import manifest

HISTORIES = random_histories(np.random.default_rng(3), 25)
FOLD = (np.arange(25) % 3).astype(np.int8)
ROWS = encode(HISTORIES, None, fit_histories(HISTORIES, FOLD, EncoderConfig())).past
SCORES = np.random.default_rng(4).random(ROWS.rows)
SCORED = scored_rows(ROWS, HISTORIES.users, FOLD, SCORES)


def changed(scored, **columns):
    values = {name: getattr(scored, name) for name in ("user", "position", "fold", "correct", "probability")}
    return Scored(**(values | columns))


def test_scored_rows_are_the_known_answers_sorted_by_user_and_position():
    users, positions = SCORED.user.strings(), SCORED.position
    pairs = list(zip(users.tolist(), positions.tolist(), strict=True))
    assert pairs == sorted(pairs)
    owner = np.repeat(np.arange(25), HISTORIES.lengths)
    expected = {
        (HISTORIES.users[owner[row]], int(ROWS.position[row])): (
            int(HISTORIES.correct[row]),
            SCORES[row],
            FOLD[owner[row]],
        )
        for row in range(ROWS.rows)
        if HISTORIES.correct[row] >= 0
    }
    found = zip(SCORED.correct.tolist(), SCORED.probability.tolist(), SCORED.fold.tolist(), strict=True)
    assert dict(zip(pairs, found, strict=True)) == expected
    assert len(expected) < ROWS.rows  # there were hidden answers


def test_a_table_survives_the_store():
    table = SCORED.to_table()
    assert table.schema == OOF_SCHEMA
    again = Scored.from_table(table, "member")
    assert again.to_table().equals(table)
    assert evaluation_set(manifest(), again) == evaluation_set(manifest(), SCORED)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("probability", np.nan, "member x: row 2 has probability nan"),
        ("probability", 1.5, "probability 1.5; expected a number from 0 to 1"),
        ("correct", -1, "found the answer -1"),
    ],
)
def test_a_bad_value_is_refused(column, value, message):
    values = getattr(SCORED, column).copy()
    values[2] = value
    with pytest.raises(InputError, match=message):
        Scored.from_table(changed(SCORED, **{column: values}).to_table(), "member x")


def test_another_order_a_pair_twice_or_a_missing_column_is_refused():
    table = SCORED.to_table()
    with pytest.raises(InputError, match="sorted by user and position"):
        Scored.from_table(table.take(pa.array(np.arange(len(table))[::-1])), "member x")
    with pytest.raises(InputError, match=r"row 1 .*there twice"):
        Scored.from_table(pa.concat_tables([table.slice(0, 1), table]), "member x")
    with pytest.raises(InputError, match="columns fold are missing"):
        Scored.from_table(table.drop_columns(["fold"]), "member x")


def test_the_fingerprint_is_frozen():
    """It is stored in bundles and reports: a change of this literal makes every earlier figure incomparable."""
    tiny = Scored(
        Coded.of(["a", "a", "b", "b"]),
        np.array([0, 1, 1, 2], np.int32),
        np.zeros(4, np.int8),
        np.array([1, 0, 1, 1], np.int8),
        np.full(4, 0.5),
    )
    found = evaluation_set(manifest(), tiny)
    assert found.rows == 3  # position 0 is not scored
    assert found.fingerprint == "d8cfe3fe9605"


def test_the_fingerprint_follows_the_rows_not_the_scores_codes_or_file_names():
    base = evaluation_set(manifest(), SCORED)
    recoded = Coded.of(pa.array(SCORED.user.strings().tolist()))
    assert evaluation_set(manifest(), changed(SCORED, user=recoded, probability=SCORED.probability / 2)) == base
    renamed = manifest(inputs={"elsewhere/b.csv": "2222", "a.csv": "1111"})
    assert evaluation_set(renamed, SCORED) == base
    answers = SCORED.correct.copy()
    row = np.flatnonzero(SCORED.headline)[0]
    answers[row] = 1 - answers[row]
    encoder = {"encoder": EncoderConfig(bundle="test_run").model_dump(mode="json"), "context": 100}
    others = [
        evaluation_set(manifest(), changed(SCORED, correct=answers)),
        evaluation_set(manifest(inputs={"a.csv": "3333"}), SCORED),
        evaluation_set(manifest(folds=5), SCORED),
        evaluation_set(manifest(), SCORED, folds=0),
        evaluation_set(manifest(config=encoder), SCORED),
        evaluation_set(manifest(config={**manifest().config, "context": 50}), SCORED),
    ]
    assert len({found.fingerprint for found in [base, *others]}) == len(others) + 1


def test_different_sets_are_refused_with_fingerprints_and_fields():
    a = evaluation_set(manifest(), SCORED)
    comparable(a, a.model_copy())
    b = a.model_copy(update={"context": 50, "bundle": "test_run"})
    with pytest.raises(ConfigError) as refused:
        comparable(a, b, ("champion", "challenger"))
    message = str(refused.value)
    for part in ("champion", "challenger", a.fingerprint, b.fingerprint, "context: 100 and 50", "bundle: 'none'"):
        assert part in message
    assert "rows" not in message
    assert EvaluationSet.model_validate(a.model_dump(mode="json")) == a


def test_members_of_the_same_rows_are_put_side_by_side():
    other = changed(SCORED, probability=1 - SCORED.probability)
    base, columns = align_members({"lightgbm": SCORED, "bert": other})
    assert base is SCORED
    np.testing.assert_array_equal(columns, np.column_stack([SCORED.probability, other.probability]))


def test_a_member_with_other_rows_answers_folds_or_constant_scores_is_refused_by_name():
    shorter = Scored.from_table(SCORED.to_table().slice(3), "bert")
    with pytest.raises(ConfigError, match=r"bert has other rows than lightgbm.* 3 of .* missing; e.g. user u"):
        align_members({"lightgbm": SCORED, "bert": shorter})
    with pytest.raises(ConfigError, match="bert has other rows than lightgbm"):
        align_members({"lightgbm": shorter, "bert": SCORED})
    flipped = changed(SCORED, correct=(1 - SCORED.correct).astype(np.int8))
    with pytest.raises(ConfigError, match="bert has another `correct` column than lightgbm"):
        align_members({"lightgbm": SCORED, "bert": flipped})
    moved = changed(SCORED, fold=((SCORED.fold + 1) % 3).astype(np.int8))
    with pytest.raises(ConfigError, match="bert has another `fold` column"):
        align_members({"lightgbm": SCORED, "bert": moved})
    constant = changed(SCORED, probability=np.full(SCORED.rows, 0.25))
    with pytest.raises(ConfigError, match=r"bert scores every row 0.25.*members=\[lightgbm\]"):
        align_members({"lightgbm": SCORED, "bert": constant})


def test_locate_finds_each_pair_or_says_that_it_is_not_there():
    owner = np.repeat(np.arange(25, dtype=np.int32), HISTORIES.lengths)
    place = locate(Coded(owner, HISTORIES.users), ROWS.position, SCORED)
    np.testing.assert_array_equal(HISTORIES.users[owner[place]], SCORED.user.strings())
    np.testing.assert_array_equal(ROWS.position[place], SCORED.position)
    without = owner != 7
    place = locate(Coded(owner[without], HISTORIES.users), ROWS.position[without], SCORED)
    np.testing.assert_array_equal(place < 0, SCORED.user.strings() == HISTORIES.users[7])
    assert (locate(Coded.of([]), np.empty(0, np.int32), SCORED) == -1).all()
