"""Fitting LightGBM: early stopping, reproducible trees, categories, monotone columns, streamed data, bad columns."""

from __future__ import annotations

import dataclasses
import tracemalloc

import lightgbm as lgb
import numpy as np
import pytest
from lightgbm.basic import LightGBMError

from dkt_ray.errors import ConfigError, TrainingError
from dkt_ray.features.batch import Rows
from dkt_ray.features.encoder import EncoderConfig
from dkt_ray.features.student import FEATURE
from dkt_ray.models import lgbm
from dkt_ray.models.lgbm import Columns, LightGBM, LightGBMConfig
from dkt_ray.schema import UNKNOWN
from dkt_ray.training import table
from dkt_ray.training.progress import FitResult, Progress, TrainingData
from tests.contract import world as w

SMALL = {"num_leaves": 7, "min_data_in_leaf": 20}


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return w.World.of(w.students(120, seed=1)).data


def train(data: TrainingData, report=None, iterations=None, **settings) -> FitResult:
    return table.train(LightGBM, LightGBMConfig.model_validate(SMALL | settings), data, report, None, iterations)


def test_it_stops_early_and_keeps_the_best_rounds(data):
    reports: list[Progress] = []
    result = train(data, reports.append, rounds=2000, report_rounds=10, patience=30, learning_rate=0.3)
    assert [progress.iteration for progress in reports] == list(range(10, 10 * len(reports) + 1, 10))
    assert len(reports) < 200, "it never stopped: the test shows nothing"
    best = max(reports, key=lambda progress: progress.auc)
    assert (result.best_iteration, result.auc) == (best.iteration, best.auc)
    assert reports[-1].iteration - best.iteration == 30
    assert result.model.booster.rounds == result.best_iteration
    losses = [progress.loss for progress in reports]
    assert losses == sorted(losses, reverse=True)


def test_the_reported_auc_is_that_of_the_counted_validation_rows(data):
    result = train(data, iterations=20)
    counted = table.scored(data.valid)
    p, y = result.model.score(data.valid, data.valid)[counted], data.valid.correct[counted]
    right, wrong = p[y == 1], p[y == 0]
    pairs = (right[:, None] > wrong).mean() + 0.5 * (right[:, None] == wrong).mean()
    assert result.auc == pytest.approx(pairs, abs=1e-9)


def test_a_fixed_number_of_rounds_is_kept_whole(data):
    result = train(data, iterations=33, report_rounds=25, patience=1)
    assert [progress.iteration for progress in result.curve] == [25, 33]
    assert result.best_iteration == result.model.booster.rounds == 33
    alone = train(TrainingData(data.train, None, data.state), rounds=30)
    assert alone.best_iteration == 30
    assert alone.auc is None


def test_threads_do_not_change_the_trees(data):
    one, two = (train(data, iterations=30, threads=threads).model for threads in (1, 2))
    np.testing.assert_array_equal(one.score(data.valid, data.valid), two.score(data.valid, data.valid))


def test_hidden_answers_are_not_trained_on(data):
    hide = np.arange(data.train.rows) % 2 == 0
    hidden = dataclasses.replace(data.train, correct=np.where(hide, UNKNOWN, data.train.correct).astype(np.int8))
    kept = data.train.take(np.flatnonzero(~hide), np.array([0, (~hide).sum()]))
    settings = {"iterations": 10}
    with_hidden = train(TrainingData(hidden, None, data.state), **settings).model
    without = train(TrainingData(kept, None, data.state), **settings).model
    np.testing.assert_array_equal(with_hidden.score(data.valid, data.valid), without.score(data.valid, data.valid))
    nothing = dataclasses.replace(data.train, correct=np.full_like(data.train.correct, UNKNOWN))
    with pytest.raises(TrainingError, match="no row with a known answer"):
        train(TrainingData(nothing, None, data.state), iterations=1)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("add_valid", MemoryError("Unable to allocate 9.00 GiB for an array")),
        ("add_valid", MemoryError()),
        ("update", LightGBMError("std::bad_alloc")),
        ("update", LightGBMError("bad allocation")),
    ],
    ids=str,
)
def test_short_memory_ends_with_the_settings_that_help(data, monkeypatch, call, error):
    def short(self, *options):
        raise error

    monkeypatch.setattr(lgb.Booster, call, short)
    sizes = rf"memory is short with {data.train.rows:,} rows of \d+ columns, max_bin 127"
    with pytest.raises(
        TrainingError, match=rf"^{sizes}: read fewer number_names .*lower bin_rows \(now 4321\)"
    ) as told:
        train(data, bin_rows=4321)
    assert str(told.value).endswith(f"({str(error) or 'MemoryError'})")


def test_another_error_of_lightgbm_is_passed_on_as_it_is(data):
    with pytest.raises(LightGBMError, match="leaves"):
        train(data, num_leaves=200_000)


def test_categories_never_seen_are_scored(data):
    model = train(data, iterations=20, columns=("test", "lag"), categorical=("test",)).model
    strange = {name: np.full_like(column, 10**6) for name, column in data.valid.ids.items()}
    scores = model.score(data.valid, dataclasses.replace(data.valid, ids=strange))
    assert ((scores > 0) & (scores < 1)).all()


def test_question_and_concept_are_native_categories(data):
    """Ids carry no order: with every number left out, only a split by category can tell easy questions from hard."""
    rng = np.random.default_rng(0)
    order = {"question": rng.permutation(data.state.sizes["question"]), "concept": rng.permutation(1000)}
    settings = {"number_names": (), "columns": ("question", "concept"), "min_data_per_group": 20, "iterations": 30}
    settings |= {"cat_smooth": 5, "cat_l2": 5}

    def shuffled(rows: Rows) -> Rows:
        ids = {**rows.ids, "question": order["question"][rows.ids["question"]].astype(np.int32)}
        return dataclasses.replace(rows, ids=ids, concepts=order["concept"][rows.concepts].astype(np.int32))

    other = TrainingData(shuffled(data.train), shuffled(data.valid), data.state)
    by_category, renamed = (train(each, categorical=settings["columns"], **settings) for each in (data, other))
    assert by_category.auc > train(data, **settings).auc + 0.005
    assert renamed.auc == pytest.approx(by_category.auc, abs=0.005)
    read = by_category.model.columns.read(data.valid)
    np.testing.assert_array_equal(read, np.column_stack([data.valid.ids["question"], data.valid.concepts[:, 0]]))


def test_rare_categories_do_not_hurt(data):
    """An id of its own for every row is noise; smoothing and group size keep it out of the trees."""
    noise = {**data.train.ids, "question": np.arange(data.train.rows, dtype=np.int32) % (data.train.rows // 3)}
    noisy = TrainingData(dataclasses.replace(data.train, ids=noise), data.valid, data.state)
    settings = {"number_names": ("question_log_odds", "user_log_odds"), "iterations": 30}
    settings |= {"columns": ("question",), "categorical": ("question",)}
    gain = train(noisy, **settings).model.importance()
    assert gain["question"] < 0.02
    careless = train(noisy, **settings, cat_smooth=0, cat_l2=0, min_data_per_group=1).model.importance()
    assert careless["question"] > 0.3, "this column does no harm: the test shows nothing"


def test_a_column_that_does_not_exist_is_named(data):
    with pytest.raises(ConfigError, match="columns names 'school'; the encoder has concept, head, hour, lag"):
        train(data, iterations=1, columns=("school",))
    with pytest.raises(ConfigError, match=r"number_names has mood, height; expected some of .* question_log_odds"):
        train(data, iterations=1, number_names=("mood", "user_count", "height"))
    with pytest.raises(ValueError, match="categorical names 'test', columns has lag, head"):
        LightGBMConfig(columns=("lag", "head"), categorical=("test",))


def test_the_matrix_holds_numbers_then_ids(data):
    names = data.state.number_names
    columns = Columns(LightGBMConfig(columns=("lag", "concept")), names)
    read = columns.read(data.valid)
    np.testing.assert_array_equal(read[:, :-2], data.valid.numbers)
    np.testing.assert_array_equal(read[:, -2], data.valid.ids["lag"])
    np.testing.assert_array_equal(read[:, -1], data.valid.concepts[:, 0])
    few = Columns(LightGBMConfig(number_names=("user_count", "question_log_odds"), columns=("lag",)), names)
    assert few.names == ["user_count", "question_log_odds", "lag"]
    chosen = np.array([5, 2, 9])
    np.testing.assert_array_equal(few.read(data.valid, chosen)[:, 1], data.valid.numbers[chosen, 0])
    np.testing.assert_array_equal(few.read(data.valid, chosen)[:, 2], data.valid.ids["lag"][chosen])


def raised(rows: Rows, names: tuple[str, ...], by: float) -> Rows:
    """Rows of students whose record is better by some amount in every number that it moves."""
    numbers, ids = rows.numbers.copy(), dict(rows.ids)
    for place, name in enumerate(names):
        numbers[:, place] += by * FEATURE[name].direction
    ids["previous_correct"] = ids["previous_correct"] + 1
    return dataclasses.replace(rows, numbers=numbers, ids=ids)


def test_a_monotone_model_never_lowers_a_better_record(data):
    names = data.state.number_names
    free, bound = (train(data, iterations=60, monotone=monotone).model for monotone in (False, True))
    falls = {False: 0, True: 0}
    for by in (0.01, 0.1, 0.5, 2.0):
        better = raised(data.valid, names, by)
        for monotone, model in ((False, free), (True, bound)):
            falls[monotone] += int((model.score(better, better) < model.score(data.valid, data.valid)).sum())
    assert falls[True] == 0
    assert falls[False] > 100, "an unbound model does not fall either: the test shows nothing"
    categories = LightGBMConfig(monotone=True, categorical=("previous_correct",)).parameters(["previous_correct"])
    assert "monotone_constraints" not in categories, "LightGBM refuses to bind a category"


def test_contributions_add_up_to_the_logit(data):
    model = train(data, iterations=40, columns=("test", "lag"), categorical=("test",)).model
    shares = model.contributions(data.valid)
    assert shares.shape == (data.valid.rows, len(model.columns.names) + 1)
    np.testing.assert_allclose(shares.sum(1), model.logits(data.valid), rtol=0, atol=1e-9)
    np.testing.assert_allclose(1 / (1 + np.exp(-shares.sum(1))), model.score(data.valid, data.valid), atol=1e-12)
    assert np.ptp(shares[:, -1]) == 0, "the last column is the average row's"
    unused = [place for place, name in enumerate(model.columns.names) if not model.importance("split")[name]]
    assert unused
    assert not shares[:, unused].any()


def test_importance_finds_the_column_that_matters(data):
    place = data.state.number_names.index("user_test_count")
    oracle = np.where(data.train.correct == 1, 1.0, -1.0) + np.random.default_rng(0).normal(0, 1, data.train.rows)
    planted = data.train.numbers.copy()
    planted[:, place] = oracle
    known = TrainingData(dataclasses.replace(data.train, numbers=planted), None, data.state)
    model = train(known, iterations=20, feature_fraction=1.0).model  # every tree may read it
    for kind in ("gain", "split"):
        importance = model.importance(kind)
        assert list(importance) == [*data.state.number_names, *model.config.columns]
        assert sum(importance.values()) == pytest.approx(1)
        assert max(importance, key=importance.get) == "user_test_count"
    assert model.importance("gain") != model.importance("split")


def in_memory(data: TrainingData, config: LightGBMConfig, rounds: int) -> lgb.Booster:
    """Trees on the whole matrix at once, as LightGBM's users build them."""
    columns = Columns(config, data.state.number_names)
    answered = np.flatnonzero(data.train.correct != UNKNOWN)
    training = lgb.Dataset(
        columns.read(data.train)[answered],
        data.train.correct[answered],
        feature_name=columns.names,
        categorical_feature=list(config.categorical),
        params=config.parameters(columns.names),
    )
    booster = lgb.Booster(config.parameters(columns.names), training)
    for _ in range(rounds):
        booster.update()
    return booster


@pytest.mark.parametrize("bin_rows", [200_000, 1_000])
@pytest.mark.parametrize("categorical", [(), ("test",)])
def test_streamed_rows_give_the_trees_of_the_whole_matrix(data, bin_rows, categorical, monkeypatch):
    monkeypatch.setattr(table.Matrix, "batch_size", 97)
    hidden = np.where(np.arange(data.train.rows) % 5 == 0, UNKNOWN, data.train.correct).astype(np.int8)
    train_rows = dataclasses.replace(data.train, correct=hidden)
    some = TrainingData(train_rows, None, data.state)
    config = LightGBMConfig(**SMALL, bin_rows=bin_rows, columns=("test", "lag"), categorical=categorical)
    streamed = table.train(LightGBM, config, some, iterations=15).model
    assert streamed.booster.text == in_memory(some, config, 15).model_to_string()


def test_the_matrix_of_all_rows_never_exists(data, tmp_path):
    """Rows in mapped files: what is held while LightGBM bins them is far less than their matrix."""
    times = 60
    rows, columns = data.train, Columns(LightGBMConfig(), data.state.number_names)
    path = tmp_path / "numbers.npy"
    mapped = np.lib.format.open_memmap(path, "w+", np.float32, (times * rows.rows, rows.numbers.shape[1]))
    for start in range(times):
        mapped[start * rows.rows : (start + 1) * rows.rows] = rows.numbers
    many = dataclasses.replace(repeated(rows, times), numbers=np.load(path, mmap_mode="r"))
    config = LightGBMConfig(bin_rows=2_000)
    whole = many.rows * len(columns.names) * 4
    tracemalloc.start()
    table.dataset(many, np.arange(many.rows), config, columns).construct()
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < whole / 3
    few = table.train(LightGBM, config, TrainingData(many, None, data.state), iterations=2).model
    loaded = TrainingData(dataclasses.replace(many, numbers=np.array(many.numbers)), None, data.state)
    same = table.train(LightGBM, config, loaded, iterations=2).model
    assert few.booster.text == same.booster.text


def repeated(rows: Rows, times: int) -> Rows:
    """The same rows many times over, as one user."""
    some = {name: np.tile(column, times) for name, column in rows.ids.items()}
    return Rows(
        np.array([0, times * rows.rows]),
        some,
        np.tile(rows.concepts, (times, 1)),
        np.empty((0, rows.numbers.shape[1]), np.float32),
        *(np.tile(column, times) for column in (rows.correct, rows.position, rows.visible)),
    )


def test_rows_are_scored_some_at_a_time(data, monkeypatch):
    model = train(data, iterations=10).model
    whole = model.score(data.valid, data.valid), model.contributions(data.valid)
    monkeypatch.setattr(lgbm, "SCORE_ROWS", 31)
    np.testing.assert_array_equal(model.score(data.valid, data.valid), whole[0])
    np.testing.assert_array_equal(model.contributions(data.valid), whole[1])


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -1e30], ids=str)
@pytest.mark.parametrize("monotone", [False, True])
def test_a_column_of_one_value_changes_nothing(data, value, monotone):
    """A constant, or a column that is missing everywhere, in training and in scoring."""

    def broken(rows: Rows) -> Rows:
        numbers = rows.numbers.copy()
        numbers[:, data.state.number_names.index("user_log_odds")] = value
        return dataclasses.replace(rows, numbers=numbers)

    settings = {"iterations": 20, "feature_fraction": 1.0, "monotone": monotone}
    names = tuple(name for name in data.state.number_names if name != "user_log_odds")
    without = train(data, number_names=names, **settings)
    constant = train(TrainingData(broken(data.train), broken(data.valid), data.state), **settings)
    assert constant.model.importance("split")["user_log_odds"] == 0
    scores = constant.model.score(data.valid, broken(data.valid))
    np.testing.assert_array_equal(scores, without.model.score(data.valid, data.valid))


def test_values_missing_here_and_there_are_scored(data):
    rng = np.random.default_rng(0)
    holes = data.train.numbers.copy()
    holes[rng.random(holes.shape) < 0.3] = np.nan
    model = train(TrainingData(dataclasses.replace(data.train, numbers=holes), data.valid, data.state), iterations=20)
    assert np.isfinite(model.model.score(data.valid, data.valid)).all()
    nothing = dataclasses.replace(data.valid, numbers=np.full_like(data.valid.numbers, np.nan))
    assert np.isfinite(model.model.score(nothing, nothing)).all()


def test_a_vocabulary_of_one_is_a_constant_category():
    data = w.World.of(w.students(60, seed=2), EncoderConfig(min_count=10**6)).data
    assert data.state.sizes["question"] == 2  # padding and unknown: no id is frequent enough
    ids = ("question", "concept")
    model = train(data, iterations=20, columns=ids, categorical=ids).model
    assert model.importance("split")["question"] == model.importance("split")["concept"] == 0
    scores = model.score(data.valid, data.valid)
    assert ((scores > 0) & (scores < 1)).all()


def test_histories_of_one_answer_are_fitted_and_scored():
    histories = w.students(300, seed=2)
    data = w.World.of(histories.head(np.ones(300, np.int64))).data
    result = train(data, rounds=20)
    assert result.auc is None, "no validation row has a past: there is nothing to stop by"
    assert result.best_iteration == 20
    scores = result.model.score(data.valid, data.valid)
    assert scores.shape == (100,)
    assert ((scores > 0) & (scores < 1)).all()


def test_other_features_than_those_of_the_fit_are_refused_with_both_lists(data, tmp_path):
    names = data.state.number_names
    train(data, iterations=2).model.save(tmp_path)
    again = LightGBM.load(tmp_path)
    again.check(names)
    for others in (names[:-1], (*names, "new"), names[::-1]):
        with pytest.raises(ConfigError) as refused:
            again.check(others)
        assert ", ".join(names) in str(refused.value)
        assert ", ".join(others) in str(refused.value)
