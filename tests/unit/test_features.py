"""Features on hand-made rows, the fitted state, and the form of ids."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dkt_ray.config import build
from dkt_ray.data.history import Coded, Histories
from dkt_ray.errors import BundleError, ConfigError, InputError
from dkt_ray.features.batch import UNKNOWN_ID
from dkt_ray.features.difficulty import count, merge
from dkt_ray.features.encoder import EncoderConfig, EncoderState, encode, fit, fit_histories, moments
from dkt_ray.features.restated import AGGREGATES, ROW_FEATURES, collapsed
from dkt_ray.features.structure import consistent, decompose, implied_test
from dkt_ray.features.student import FEATURE, FEATURES, uninformed
from dkt_ray.schema import UNKNOWN


def history(answers: list[int], questions: list[str], concepts: list[str], seconds: list[float]) -> Histories:
    rows = len(answers)
    return Histories(
        np.array(["u"], object),
        np.array([0, rows]),
        Coded.of(questions),
        Coded.constant("t", rows),
        Coded.of(concepts),
        np.array(answers, np.int8),
        (np.array(seconds) * 1000).astype(np.int64),
    )


SIX = history([1, 0, 1, UNKNOWN, 1, 0], list("abacab"), ["1", "2", "1", "1_2", "1", "2"], [0, 10, 15, 20, 80, 1e6])


def column(histories: Histories, name: str, **config: object) -> np.ndarray:
    state = fitted(histories, min_count=1, **config)
    return encode(histories, None, state).past.numbers[:, state.number_names.index(name)]


def fitted(histories: Histories, **config: object) -> EncoderState:
    return fit_histories(histories, np.zeros(len(histories.users), np.int8), EncoderConfig(**config))


def test_running_counts_by_hand() -> None:
    np.testing.assert_allclose(np.expm1(column(SIX, "user_count")), range(6), atol=1e-6)
    np.testing.assert_allclose(np.expm1(column(SIX, "user_question_count")), [0, 0, 1, 0, 2, 1], atol=1e-6)
    # row 3 has concepts 1 and 2: two earlier rows of concept 1 and one of concept 2
    np.testing.assert_allclose(np.expm1(column(SIX, "user_concept_count")), [0, 0, 1, 3, 3, 2], atol=1e-6)


def test_running_log_odds_by_hand() -> None:
    rate = (3 + 1) / (5 + 2)  # 3 of 5 known answers are right
    right, graded = np.array([0, 1, 1, 2, 2, 3]), np.array([0, 1, 2, 3, 3, 4])
    expected = np.log((right + 2 * rate) / (graded - right + 2 * (1 - rate)))
    np.testing.assert_allclose(column(SIX, "user_log_odds"), expected, rtol=1e-6)
    np.testing.assert_allclose(column(SIX, "recent_5_log_odds"), expected, rtol=1e-6)


def test_times_by_hand() -> None:
    submitted = column(SIX, "previous_elapsed_log")
    np.testing.assert_allclose(submitted, [-1, -1, *np.log1p([10, 5, 5, 60])], rtol=1e-6)
    assert "lag_log" not in fitted(SIX).number_names, "with `submitted` a row does not know its own time"
    assert fitted(SIX).switched_off["lag_log"] == "the data have no times of showing (timestamp_is: shown)"
    np.testing.assert_allclose(
        column(SIX, "lag_log", timestamp_is="shown"), [-1, *np.log1p([10, 5, 5, 60, 1e6 - 80])], rtol=1e-6
    )
    untimed = fitted(SIX, timestamp_is="shown", use_time=False)
    assert not any("time" in FEATURE[name].needs for name in untimed.number_names)
    assert untimed.switched_off["tempo"] == "the data have no timestamps"


def test_difficulty_backs_off_from_question_to_overall() -> None:
    state = fitted(SIX, min_count=1, smoothing=10)
    unseen = history([1, 1], ["new", "new"], ["nowhere", "1"], [0, 1])
    rows = encode(unseen, None, state).past
    overall = np.log(state.base_rate / (1 - state.base_rate))
    named = dict(zip(state.number_names, rows.numbers.T, strict=True))
    assert named["concept_log_odds"][0] == pytest.approx(overall)  # unknown concept and head: the overall rate
    concept = (3 + 10 * state.base_rate) / (3 + 10)  # concept 1: rows 0, 2, 4, all right; row 3 is hidden
    assert named["concept_log_odds"][1] == pytest.approx(np.log(concept / (1 - concept)))
    test = (3 + 10 * concept) / (5 + 10)
    assert named["question_log_odds"][1] == pytest.approx(np.log(test / (1 - test)))
    assert (rows.ids["question"] == UNKNOWN_ID).all()


def test_rare_ids_become_unknown_and_known_ids_never_do() -> None:
    state = fitted(SIX, min_count=2)
    ids = encode(SIX, None, state).past.ids["question"]
    np.testing.assert_array_equal(ids == UNKNOWN_ID, [q == "c" for q in "abacab"])
    assert ids.max() < state.sizes["question"]


def test_test_users_are_not_counted_and_counts_add_up() -> None:
    pair = Histories(
        np.array(["u", "v"], object), np.array([0, 2, 4]), Coded.of(list("abab")), Coded.constant("", 4),
        Coded.constant("", 4), np.array([1, 0, 1, 1], np.int8),
    )  # fmt: skip
    both = count(pair, np.array([0, 1], np.int8))
    assert count(pair, np.array([0, -1], np.int8)).to_table().equals(both.without(1).to_table())
    halves = [count(pair.select(np.array([u])), np.array([u], np.int8)) for u in (1, 0)]
    assert merge(halves).to_table().equals(both.to_table())


def test_state_round_trip(tmp_path: Path) -> None:
    state = fitted(SIX, min_count=1)
    state = state.with_scaler(moments(encode(SIX, None, state).past))
    state.save(tmp_path)
    loaded = EncoderState.load(tmp_path)
    assert loaded.digest == state.digest
    assert loaded.sizes == state.sizes
    np.testing.assert_array_equal(encode(SIX, None, loaded).past.numbers, encode(SIX, None, state).past.numbers)
    text = (tmp_path / "state.json").read_text()
    (tmp_path / "state.json").write_text(text.replace('"version": 2', '"version": 0'))
    with pytest.raises(BundleError, match="version"):
        EncoderState.load(tmp_path)
    (tmp_path / "state.json").write_text(text.replace("user_count@1", "user_count@0"))
    with pytest.raises(BundleError, match="user_count@0, user_count@1"):
        EncoderState.load(tmp_path)
    (tmp_path / "state.json").write_text(text)
    for name in ("counts.parquet", "profile.parquet"):
        content = (tmp_path / name).read_bytes()
        pl.read_parquet(tmp_path / name).rename({"question": "item"}).write_parquet(tmp_path / name)
        with pytest.raises(BundleError, match=r'other columns .*"question"'):
            EncoderState.load(tmp_path)
        (tmp_path / name).write_bytes(content)


def test_scaler_is_mean_and_standard_deviation_and_adds_up_exactly() -> None:
    state = fitted(SIX, min_count=1)
    rows = encode(SIX, None, state).past
    whole = moments(rows)
    parts = [moments(rows.take(np.array(part), np.array([0, len(part)]))) for part in ([0, 1], [2, 3, 4, 5])]
    np.testing.assert_array_equal((parts[0] + parts[1]).squares, whole.squares)
    scaled = state.with_scaler(whole)
    np.testing.assert_allclose(scaled.mean, rows.numbers.mean(0), atol=1e-3)
    np.testing.assert_allclose(scaled.std, rows.numbers.std(0), atol=1e-2)


def test_nothing_to_learn_from_is_said() -> None:
    hidden = history([UNKNOWN], ["a"], ["1"], [0])
    with pytest.raises(InputError, match="no known answer"):
        fit([count(hidden, np.zeros(1, np.int8))], EncoderConfig())


def test_requests_get_test_and_concepts_of_known_questions_and_the_form_of_unknown_ones() -> None:
    state = fitted(SIX, min_count=1)
    test, concepts = state.describe(Coded.of(["a", "c", "A050060007", "zz"]))
    assert test.strings().tolist() == ["t", "t", "A050000060", ""]
    assert concepts.strings().tolist() == ["1", "1_2", "", ""]
    given_test, _ = state.describe(Coded.of(["zz", "a"]), Coded.of(["mine", ""]))
    assert given_test.strings().tolist() == ["mine", "t"]


def test_id_decomposition() -> None:
    ids = np.array(["A050060007", "q12", "A05006000x"], object)
    parts = decompose(ids)
    assert {name: column[0] for name, column in parts.items()} == {
        "head": "050", "mid": "060", "tail": "007", "mid_tail": "060007", "head_tail": "050007", "paper": "050060",
    }  # fmt: skip
    assert all(column[1] == column[2] == "" for column in parts.values())
    assert implied_test(ids).tolist() == ["A050000060", "", ""]
    assert consistent(ids, np.array(["A050000060", "b9", "?"], object)).all()
    assert not consistent(ids[:1], np.array(["A050000061"], object)).any()


def test_every_feature_has_a_name_of_its_own_and_a_doc() -> None:
    assert len(FEATURE) == len(FEATURES) >= 100
    assert all(feature.doc for feature in FEATURES)


def test_what_the_reference_computed_has_a_column_here() -> None:
    assert (len(ROW_FEATURES), len(AGGREGATES)) == (33, 13)
    columns = {column for several in (*ROW_FEATURES.values(), *AGGREGATES.values()) for column in several if column}
    assert columns <= set(FEATURE)
    assert len(columns) == 53
    assert collapsed()["user_count"] == ("UserCumtestnum", "quesCnt", "QuesCnt (user)")


def test_a_group_is_switched_off_by_config_and_by_what_the_data_lack() -> None:
    few = fitted(SIX, features=["recent", "elo"])
    groups = {FEATURE[name].group for name in few.number_names}
    assert groups == {"core", "recent", "elo"}
    assert few.switched_off["lag_log"] == "group time is switched off"
    plain = fitted(SIX)  # one test only, ids without heads
    assert plain.switched_off["user_test_count"] == "the data have no tests"
    assert plain.switched_off["user_head_count"].startswith("the data have no ids of the form")
    assert encode(SIX, None, few).past.numbers.shape == (6, len(few.number_names))
    with pytest.raises(ConfigError, match="no feature group 'foo'; expected some of core"):
        build(EncoderConfig, {"features": ["foo"]})


def test_core_stays_on_without_concepts_and_is_known_to_tell_nothing() -> None:
    bare = history([1, 0, 1, 1], ["A010001001", "A020001002"] * 2, [""] * 4, [0, 10, 20, 30])
    state = fitted(bare, min_count=1)
    names = uninformed(state.facts)
    assert names == ("concept_log_odds", "user_concept_count", "user_concept_log_odds", "user_concept_surplus")
    assert set(names) <= set(state.number_names)
    numbers = dict(zip(state.number_names, encode(bare, None, state).past.numbers.T, strict=True))
    np.testing.assert_array_equal(numbers["concept_log_odds"], numbers["head_log_odds"])
    for name in names[1:]:
        assert len(set(numbers[name])) == 1, name
    assert uninformed(fitted(SIX).facts) == ()


@pytest.mark.parametrize(
    ("binning", "edges"),
    [
        ({"kind": "cap", "cap_s": 4}, [1, 2, 3, 4]),
        ({"kind": "cut", "cap_s": 60, "bins": 3}, [20, 40, 60]),
        ({"kind": "edges"}, [50, 100, 200, 300, 400, 500, 600]),
        ({"kind": "edges", "edges_s": [5, 7.5]}, [5, 7.5]),
        ({"kind": "qcut", "cap_s": 60, "bins": 2}, [11]),  # times between rows: 5, 5, 10, 60 and a pause, capped
    ],
)
def test_durations_are_binned_by_fixed_edges(binning: dict[str, object], edges: list[float]) -> None:
    state = fitted(SIX, min_count=1, binning=binning)
    assert state.edges.tolist() == edges
    ids = encode(SIX, None, state).past.ids["previous_elapsed"]
    np.testing.assert_array_equal(ids[:2], UNKNOWN_ID)
    np.testing.assert_array_equal(ids[2:], 2 + np.searchsorted(edges, [10, 5, 5, 60], "right"))
    zero = fitted(SIX, min_count=1, binning=binning | {"first_row": "zero"})
    assert encode(SIX, None, zero).past.ids["previous_elapsed"][:2].tolist() == [2, 2]
    assert ids.max() < state.sizes["previous_elapsed"]


@pytest.mark.parametrize("edges", [[], [0, 5], [5, 5], [10, 5]])
def test_edges_that_make_no_bins_are_refused(edges: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"edges_s.*expected ascending seconds above 0"):
        build(EncoderConfig, {"binning": {"kind": "edges", "edges_s": edges}})


def test_scaling_by_range() -> None:
    state = fitted(SIX, min_count=1, scaling="min_max")
    rows = encode(SIX, None, state).past
    scaled = state.with_scaler(moments(rows))
    inside = (rows.numbers - scaled.mean) / scaled.std
    assert inside.min() >= -1e-3
    assert inside.max() <= 1 + 1e-3


def test_moments_hold_any_number_of_rows() -> None:
    """Half a billion rows of up to 600 seconds: their squares pass 64 bits."""
    state = fitted(SIX, min_count=1)
    rows = encode(SIX, None, state).past
    total = one = moments(rows)
    for _ in range(27):
        total = total + total
    again = type(one).from_dict(json.loads(json.dumps(total.to_dict())))
    assert again.count == 6 << 27
    np.testing.assert_allclose(state.with_scaler(again).std, state.with_scaler(one).std, rtol=1e-9)
    np.testing.assert_allclose(state.with_scaler(one).std, np.maximum(rows.numbers.std(0), 1e-6), atol=2e-3)
