"""What every model family of the catalog promises; a new line in the catalog inherits all of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dkt_ray.data.history import Coded, Histories, Targets
from dkt_ray.data.simulate import SimulateConfig, simulate
from dkt_ray.errors import ConfigError
from dkt_ray.features.encoder import EncoderConfig, encode
from dkt_ray.metrics import auc
from dkt_ray.models.base import Between, Choice, Model
from dkt_ray.models.catalog import CATALOG
from dkt_ray.training.baselines import counting
from dkt_ray.training.fit import TRAINERS, TrainingData, fit
from dkt_ray.training.progress import scored
from tests.contract import world as w

every_family = pytest.mark.parametrize("family", CATALOG)
SWITCHES = {"plain": EncoderConfig(), "test_run": EncoderConfig(bundle="test_run", timestamp_is="shown")}
every_switch = pytest.mark.parametrize("switches", SWITCHES)


@pytest.fixture(scope="session")
def worlds() -> dict[str, w.World]:
    histories = w.students(120, seed=3)
    return {name: w.World.of(histories, config) for name, config in SWITCHES.items()}


@pytest.fixture(scope="session")
def fitted(worlds: dict[str, w.World]) -> Callable[[str, str], Model]:
    """One briefly trained model per family and encoder setting."""
    models: dict[tuple[str, str], Model] = {}

    def get(family: str, switches: str = "plain") -> Model:
        if (family, switches) not in models:
            data, config = worlds[switches].data, w.tiny(CATALOG[family], epochs=3, rounds=30)
            models[family, switches] = fit(family, config, data).model
        return models[family, switches]

    return get


@pytest.fixture(scope="session")
def others() -> Histories:
    """Students that no model has seen; some histories span several context blocks, one is short."""
    return w.students(24, seed=4)


@every_family
def test_scores_are_one_probability_per_target(family, fitted, worlds, others):
    rows, p = w.score_history(fitted(family), others, worlds["plain"].state)
    assert p.shape == (rows.rows,)
    assert p.dtype == np.float64
    assert np.isfinite(p).all()
    assert ((p > 0) & (p < 1)).all()
    assert p.std() > 0.01


@every_family
@every_switch
def test_no_row_reads_the_future(family, switches, fitted, worlds, others):
    w.check_future_property(fitted(family, switches), others, worlds[switches].state)


@every_family
@every_switch
def test_a_prefix_is_scored_as_in_the_whole_history(family, switches, fitted, worlds, others):
    state, model = worlds[switches].state, fitted(family, switches)
    half = others.lengths // 2
    _, whole = w.score_history(model, others, state)
    _, prefix = w.score_history(model, others.head(half), state)
    kept = np.concatenate([np.arange(start, start + n) for start, n in zip(others.offsets, half, strict=False)])
    np.testing.assert_allclose(prefix, whole[kept], **w.EQUAL)


@every_family
def test_the_other_students_of_a_batch_do_not_matter(family, fitted, worlds, others):
    state, model = worlds["plain"].state, fitted(family)
    _, together = w.score_history(model, others, state)
    for chosen in ([3], [5, 0], list(range(10, 24))):
        _, apart = w.score_history(model, others.select(np.array(chosen)), state)
        mine = np.concatenate([together[others.offsets[u] : others.offsets[u + 1]] for u in chosen])
        np.testing.assert_allclose(apart, mine, **w.EQUAL)


@every_family
@every_switch
def test_many_targets_are_scored_as_one_by_one_and_as_in_the_batch_path(family, switches, fitted, worlds, others):
    w.check_many_targets(fitted(family, switches), others, worlds[switches].state)


@every_family
@every_switch
def test_targets_that_see_less_are_scored_as_after_less(family, switches, fitted, worlds, others):
    w.check_targets_that_see_less(fitted(family, switches), others, worlds[switches].state)


@every_family
def test_ids_never_seen_and_empty_histories_are_scored(family, fitted, worlds, others):
    state, model = worlds["plain"].state, fitted(family)
    strangers = replace(
        others,
        question=Coded.constant("new question", others.rows),
        test=Coded.constant("new test", others.rows),
        concepts=Coded.constant("new concept", others.rows),
    )
    _, p = w.score_history(model, strangers, state)
    assert ((p > 0) & (p < 1)).all()

    nobody = others.head(np.zeros(len(others.users), np.int64))
    asked = encode(nobody, w.candidates(others, 3, seed=6), state)
    p = model.score(asked.past, asked.targets)
    assert p.shape == (3 * len(others.users),)
    assert ((p > 0) & (p < 1)).all()

    nothing = encode(others, Targets(np.zeros(25, np.int64), *[Coded.of([])] * 3, np.empty(0, np.int64)), state)
    assert model.score(nothing.past, nothing.targets).shape == (0,)


@every_family
def test_a_saved_model_scores_the_same_bits_and_holds_no_pickle(family, fitted, worlds, others, tmp_path):
    state, model = worlds["plain"].state, fitted(family)
    model.save(tmp_path)
    again = CATALOG[family].model.load(tmp_path)
    assert again.config == model.config
    np.testing.assert_array_equal(w.score_history(again, others, state)[1], w.score_history(model, others, state)[1])
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".txt", ".safetensors"}


@every_family
def test_the_same_seed_gives_the_same_curve_and_another_one_another(family, worlds):
    def curve(seed: int) -> list[tuple[float, float]]:
        config = w.tiny(CATALOG[family], seed=seed, epochs=2, rounds=40, report_rounds=20)
        return [(p.loss, p.auc) for p in fit(family, config, worlds["plain"].data).curve]

    first = curve(1)
    assert len(first) == 2
    assert curve(1) == first
    assert curve(2) != first


@every_family
def test_eight_students_are_learned_by_heart(family):
    few = w.World.of(w.students(12, seed=7, longest=24))  # 8 of them train
    data = TrainingData(few.data.train, None, few.state)
    by_heart = {"min_data_in_leaf": 2, "rounds": 200, "width": 32, "dropout": 0.0, "unknown_share": 0.0}
    config = w.tiny(CATALOG[family], **by_heart, epochs=40, learning_rate=0.02)  # a step an epoch
    model = fit(family, config, data).model
    assert auc(data.train.correct, model.score(data.train, data.train)) > 0.97


@pytest.fixture(scope="session")
def simulated() -> TrainingData:
    """The simulator's students: some 35,000 answers."""
    histories = simulate(SimulateConfig(users=400, bank_fraction=0.1)).histories()
    return w.World.of(histories.head(np.minimum(histories.lengths, 100))).data


@every_family
def test_it_beats_the_counting_model(family, simulated):
    counted = scored(simulated.valid)
    baseline = counting(simulated.train, simulated.valid, simulated.state.number_names)
    config = w.tiny(CATALOG[family], context=24, epochs=2, batch_rows=1024, rounds=150)
    result = fit(family, config, simulated)
    assert result.auc > auc(simulated.valid.correct[counted], baseline[counted])


@pytest.fixture(scope="session")
def shuffled() -> TrainingData:
    """Students whose answers say nothing."""
    rng, students = np.random.default_rng(9), w.students(600, seed=8)
    return w.World.of(replace(students, correct=rng.permutation(students.correct))).data


@every_family
def test_it_learns_nothing_from_shuffled_answers(family, shuffled):
    result = fit(family, w.tiny(CATALOG[family], epochs=2, rounds=40), shuffled, iterations=2)
    p = result.model.score(shuffled.valid, shuffled.valid)
    assert abs(auc(shuffled.valid.correct, p) - 0.5) < 0.03


@every_family
def test_the_search_space_proposes_settings_that_exist(family):
    spec = CATALOG[family]
    assert spec.view in TRAINERS
    assert spec.space
    for name, rule in spec.space.items():
        ends = rule.values if isinstance(rule, Choice) else (rule.low, rule.high)
        assert isinstance(rule, Between | Choice)
        for value in ends:
            assert getattr(spec.config.model_validate({name: value}), name) == value


def test_an_unknown_family_is_named_with_the_known_ones(worlds):
    with pytest.raises(ConfigError, match=re.escape("'gpt'; the catalog has lightgbm")):
        fit("gpt", CATALOG["lightgbm"].config(), worlds["plain"].data)


def test_no_code_outside_the_catalog_compares_family_names():
    package = Path(__file__).parents[2] / "dkt_ray"
    names = "|".join(map(re.escape, CATALOG))
    compared = re.compile(rf"""[=!]=\s*["']({names})["']|["']({names})["']\s*[=!]=|\bcase\s+["']({names})["']""")
    offenders = [str(p) for p in package.rglob("*.py") if compared.search(p.read_text(encoding="utf-8"))]
    assert offenders == []
