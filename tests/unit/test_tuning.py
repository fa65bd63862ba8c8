"""The pure parts of a sweep: proposals, whose turn it is, resources, live lines, digests, the choice."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune import TuneError
from ray.tune.search import Searcher

from dkt_ray.config import build
from dkt_ray.errors import ConfigError, StorageError
from dkt_ray.features.batch import Rows
from dkt_ray.features.dataset import Manifest, Split
from dkt_ray.models.base import Between, Choice
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines import sweep
from dkt_ray.storage import open_store
from dkt_ray.training import tuning
from dkt_ray.training.folds import select
from dkt_ray.training.live import ENDING, ProgressLines
from dkt_ray.training.resources import Resources, place
from dkt_ray.training.search import (
    ITERATION,
    METRIC,
    REASON,
    REFUSED,
    Attempt,
    FamilySearch,
    FamilySpace,
    propose,
    spent,
)
from tests.datasets import manifest

SPACE = {
    "rate": Between(1e-4, 1e-1, log=True),
    "leaves": Between(8, 64, integer=True),
    "width": Choice((16, 32, None)),
}
DEFAULT = {"rate": 0.5, "leaves": 20, "width": 16}  # the rate lies outside the space
ONE_CPU = {"CPU": 1.0}


# --- proposals


def test_the_first_proposal_is_the_default_even_outside_the_space() -> None:
    assert propose(SPACE, DEFAULT, [], seed=1) == DEFAULT


def test_later_proposals_lie_in_the_space_and_repeat_with_the_seed() -> None:
    past = [Attempt(DEFAULT, "finished", 0.7), Attempt({"rate": 0.01, "leaves": 9, "width": None}, "running")]
    for seed in range(20):
        found = propose(SPACE, DEFAULT, past, seed)
        assert found == propose(SPACE, DEFAULT, past, seed)
        assert 1e-4 <= found["rate"] <= 1e-1
        assert 8 <= found["leaves"] <= 64
        assert isinstance(found["leaves"], int)
        assert found["width"] in (16, 32, None)
    assert propose(SPACE, DEFAULT, past, 1) != propose(SPACE, DEFAULT, past, 2)


def test_proposals_go_to_where_the_auc_is_high() -> None:
    space = {"x": Between(0.0, 1.0)}
    xs = np.linspace(0, 1, 40)
    past = [Attempt({"x": float(x)}, "finished", float(-((x - 0.8) ** 2))) for x in xs]
    found = [propose(space, {"x": 0.5}, past, seed)["x"] for seed in range(20)]
    assert abs(np.mean(found) - 0.8) < 0.1
    failed = [replace_status(attempt) for attempt in past]
    assert abs(np.mean([propose(space, {"x": 0.5}, failed, seed)["x"] for seed in range(20)]) - 0.5) < 0.2


def replace_status(attempt: Attempt) -> Attempt:
    return Attempt(attempt.params, "failed")


def test_a_space_without_anything_to_vary_gives_the_default() -> None:
    assert propose({}, {}, [Attempt({}, "finished", 0.7)], seed=0) == {}


# --- whose turn it is


def searcher(
    demands: dict[str, dict[str, float]], capacity: dict[str, float], trials: int = 3, concurrency: int | None = None
) -> FamilySearch:
    families = {family: FamilySpace(SPACE, DEFAULT, {"seed": 7}) for family in demands}
    return FamilySearch(families, demands, trials, 0, lambda: capacity, concurrency)


def end(search: FamilySearch, trial: str, auc: float = 0.7) -> None:
    search.on_trial_complete(trial, {METRIC: auc})


def test_every_family_gets_exactly_its_trials_in_turn() -> None:
    search = searcher({"a": ONE_CPU, "b": ONE_CPU}, {"CPU": 2})
    order = []
    for number in range(6):
        order.append(search.suggest(f"t{number}")["family"])
        end(search, f"t{number}")
    assert order == ["a", "b"] * 3
    assert search.suggest("t6") == Searcher.FINISHED


def test_a_suggestion_holds_the_sample_and_the_fixed_settings() -> None:
    assert searcher({"a": ONE_CPU}, {"CPU": 2}).suggest("t") == {"family": "a", "settings": DEFAULT | {"seed": 7}}


def test_no_trial_comes_before_there_is_room_for_it() -> None:
    search = searcher({"a": ONE_CPU}, {"CPU": 2})
    assert search.suggest("t0")
    assert search.suggest("t1")
    assert search.suggest("t2") is None
    end(search, "t0")
    assert search.suggest("t2")


def test_a_family_that_waits_for_the_gpu_does_not_hold_back_the_others() -> None:
    search = searcher({"gpu": {"CPU": 1, "GPU": 0.5}, "cpu": ONE_CPU}, {"CPU": 5, "GPU": 1})
    assert [search.suggest(f"t{i}")["family"] for i in range(5)] == ["gpu", "cpu", "gpu", "cpu", "cpu"]
    assert search.suggest("t5") is None  # no CPU is left
    end(search, "t0")
    assert search.suggest("t5")["family"] == "gpu"


def test_concurrency_bounds_all_families_together() -> None:
    search = searcher({"a": ONE_CPU, "b": ONE_CPU}, {"CPU": 8}, concurrency=1)
    assert search.suggest("t0")
    assert search.suggest("t1") is None
    end(search, "t0")
    assert search.suggest("t1")


def test_one_trial_runs_even_where_the_cluster_seems_too_small() -> None:
    search = searcher({"a": {"CPU": 4}}, {"CPU": 2})  # the cluster shrank since the resources were checked
    assert search.suggest("t0")
    assert search.suggest("t1") is None


def test_a_restored_search_goes_on_where_it_was(tmp_path: Path) -> None:
    first = searcher({"a": ONE_CPU, "b": ONE_CPU}, {"CPU": 3})
    for number in range(3):
        first.suggest(f"t{number}")
    end(first, "t0", 0.8)
    first.on_trial_complete("t1", error=True)
    first.save(str(tmp_path / "book"))
    second = searcher({"a": ONE_CPU, "b": ONE_CPU}, {"CPU": 3})
    second.restore(str(tmp_path / "book"))
    assert second.suggest("t3") == first.suggest("t3")
    end(second, "t2")
    assert [second.suggest(f"t{number}")["family"] for number in (4, 5)] == ["a", "b"]
    assert second.suggest("t6") == Searcher.FINISHED


def test_a_random_search_is_a_list_drawn_beforehand() -> None:
    """Whatever the trials found, and in whatever order they ended, the configurations are the same."""

    def drawn(aucs: list[float], searcher: Any = "random") -> list[dict[str, Any]]:
        search = FamilySearch(
            {"a": FamilySpace(SPACE, DEFAULT, {})}, {"a": ONE_CPU}, 12, 3, lambda: {"CPU": 1.0}, None, searcher
        )
        found = []
        for number, auc in enumerate(aucs):
            found.append(search.suggest(f"t{number}")["settings"])
            end(search, f"t{number}", auc)
        return found

    rising, falling = [0.5 + 0.01 * k for k in range(12)], [0.7 - 0.01 * k for k in range(12)]
    assert drawn(rising) == drawn(falling)
    assert len({str(settings) for settings in drawn(rising)}) == 12
    assert drawn(rising, "optuna") != drawn(falling, "optuna")
    assert drawn(rising, "optuna") == drawn(rising, "optuna")  # one slot: the same seed, the same trials


def test_a_warm_start_repeats_the_best_and_learns_from_all() -> None:
    space = {"x": Between(0.0, 1.0)}
    known = tuple(Attempt({"x": 0.8 + 0.002 * k}, "finished", 0.8 - 0.001 * k) for k in range(12))
    low = tuple(Attempt({"x": 0.02 * k}, "finished", 0.5 + 0.001 * k) for k in range(12))
    found = []
    for seed in range(20):
        search = FamilySearch(
            {"a": FamilySpace(space, {"x": 0.1}, {}, known + low)}, {"a": ONE_CPU}, 8, seed, lambda: {"CPU": 1.0}
        )
        trials = []
        for number in range(4):
            trials.append(search.suggest(f"t{number}")["settings"]["x"])
            end(search, f"t{number}", 0.6)
        assert trials[:3] == [0.1, 0.8, 0.802]  # the default, then a quarter of the trials
        found.append(trials[3])
    assert np.mean(found) > 0.65


def test_no_trial_begins_once_the_compute_is_used_up_and_a_restored_search_remembers_it(tmp_path: Path) -> None:
    demands = {"cpu": {"CPU": 2.0}, "gpu": {"CPU": 4.0, "GPU": 0.5}}
    assert spent({"cpu": 10, "gpu": 30}, demands) == 10 * 2 + 30 * 0.5

    def fresh() -> FamilySearch:
        families = {family: FamilySpace(SPACE, DEFAULT, {}) for family in demands}
        return FamilySearch(families, demands, 9, 0, lambda: {"CPU": 16.0, "GPU": 2.0}, None, "optuna", 40)

    search = fresh()
    assert [search.suggest(name)["family"] for name in ("t0", "t1")] == ["cpu", "gpu"]
    search.on_trial_result("t0", {METRIC: 0.6, "time_total_s": 10.0})
    search.on_trial_complete("t1", {METRIC: 0.6, "time_total_s": 30.0})
    assert search.suggest("t2")  # 20 + 15 are used
    search.save(str(tmp_path / "book"))
    again = fresh()
    again.restore(str(tmp_path / "book"))
    for one in (search, again):
        one.on_trial_complete("t0", {METRIC: 0.6, "time_total_s": 12.5})
        assert one.suggest("t3") == Searcher.FINISHED


# --- resources


def test_gpus_that_are_not_there_are_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        placed = place({"a": Resources(gpus=0.25), "b": Resources()}, [{"CPU": 2.0, "memory": 1e9}])
    assert placed == {"a": Resources(), "b": Resources()}
    assert "a asks for 0.25 GPU" in caplog.text
    assert " b asks" not in caplog.text


def test_a_part_of_a_gpu_is_kept_where_there_is_one() -> None:
    wanted = {"a": Resources(gpus=0.25)}
    assert place(wanted, [{"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}]) == wanted
    assert wanted["a"].bundle() == {"CPU": 1, "GPU": 0.25}


@pytest.mark.parametrize(
    ("wanted", "nodes"),
    [
        (Resources(cpus=5), [{"CPU": 4.0}, {"CPU": 4.0}]),  # together they have 8: one fit needs one node
        (Resources(gpus=2), [{"CPU": 4.0, "GPU": 1.0}]),
        (Resources(cpus=4, gpus=1), [{"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}]),
    ],
)
def test_resources_that_no_node_has_are_refused(wanted: Resources, nodes: list[dict[str, float]]) -> None:
    with pytest.raises(ConfigError, match=r"resources\.lstm_attention is .* no node has that much.*ask for less"):
        place({"lstm_attention": wanted}, nodes)


def test_one_and_a_half_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"gpus is 1\.5: .*(?i:whole gpus)"):
        build(Resources, {"gpus": 1.5})


def test_growing_clusters_need_a_bound() -> None:
    with pytest.raises(ConfigError, match="autoscale=true needs concurrency"):
        build(tuning.SearchConfig, {"autoscale": True})
    families = {"a": FamilySpace(SPACE, DEFAULT, {})}
    search = FamilySearch(families, {"a": {"CPU": 8.0, "GPU": 1.0}}, 3, 0, tuning.unlimited, concurrency=2)
    assert [search.suggest(name) is None for name in ("t0", "t1", "t2")] == [False, False, True]


# --- live lines


def test_lines_name_what_a_reader_wants_to_know(caplog: pytest.LogCaptureFixture) -> None:
    trials = [
        SimpleNamespace(
            trial_id=name,
            config={"family": "a"},
            last_result=last,
            run_metadata=SimpleNamespace(last_result=last, invalidate_cache=lambda: None),
            is_finished=lambda done=done: done,
        )
        for name, last, done in (("t0", {METRIC: 0.75}, True), ("t1", {}, False), ("t2", {}, False))
    ]
    lines = ProgressLines(total=4, every_s=0)
    lines.on_step_begin(0, trials)
    with caplog.at_level(logging.INFO):
        result = {METRIC: 0.7, ITERATION: 3, "done": False}
        lines.on_trial_result(0, trials, trials[1], result)
        stopped = {METRIC: 0.71, ITERATION: 4, "done": True}
        lines.on_trial_result(0, trials, trials[1], stopped)
        trials[1].last_result = trials[1].run_metadata.last_result = stopped
        lines.on_trial_complete(0, trials, trials[1])
        failed = {METRIC: math.nan, REASON: "loss is nan", "done": True}
        trials[2].last_result = trials[2].run_metadata.last_result = failed
        lines.on_trial_complete(0, trials, trials[2])
    assert ENDING not in result
    assert stopped[ENDING] == "stopped"
    update, ending, failure = [record.getMessage() for record in caplog.records]
    assert update == "tune a t1: iteration 3, auc 0.7000 (best 0.7500), 1 of 4 trials done"
    assert ending.startswith("tune a t1: stopped at iteration 4, auc 0.7100 (best 0.7500), 2 of 4 trials done, eta ")
    assert failure.startswith("tune a t2: failed: loss is nan, auc nan (best 0.7500), 2 of 4 trials done")


def failing(trace: str, tmp_path: Path) -> Any:
    (tmp_path / "error.txt").write_text(trace)
    last: dict[str, Any] = {METRIC: 0.6}
    return SimpleNamespace(
        trial_id="t0",
        config={"family": "a"},
        error_file=str(tmp_path / "error.txt"),
        last_result=last,
        latest_checkpoint_result=None,
        run_metadata=SimpleNamespace(last_result=last, invalidate_cache=lambda: None),
        is_finished=lambda: True,
    )


DIED = "Failure # 1 (at x)\nValueError: first\nFailure # 2 (at y)\nThe actor died unexpectedly."


@pytest.mark.parametrize(
    ("trace", "silent_s", "reason"),
    [
        (DIED, 61.0, "no report for 60 s (hang_s), so its worker was ended"),
        (DIED, 59.0, "its worker died"),
        (
            "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
            99.0,
            "lower sample",
        ),
        (
            f"{DIED}\nFailure # 3 (z)\nTraceback\nZeroDivisionError: division by zero",
            99.0,
            "ZeroDivisionError: division by zero",
        ),
    ],
)
def test_a_failure_says_what_happened_and_what_helps(
    trace: str, silent_s: float, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    lines, trial = ProgressLines(total=1, hang_s=60, clock=lambda: now[0]), failing(trace, tmp_path)
    lines.on_step_begin(0, [trial])
    lines.on_trial_start(0, [trial], trial)
    now[0] += 500
    lines.on_trial_result(0, [trial], trial, {METRIC: 0.6})
    now[0] += silent_s
    with caplog.at_level(logging.INFO):
        lines.on_trial_error(0, [trial], trial)
    assert reason in trial.run_metadata.last_result[REASON]
    assert reason in caplog.messages[-1]


def test_a_checkpoint_that_the_store_refuses_ends_the_sweep() -> None:
    with pytest.raises(StorageError, match="No space left"):
        ProgressLines(total=1).on_trial_result(0, [], SimpleNamespace(), {METRIC: math.nan, REFUSED: "No space left"})


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (
            TuneError("Traceback\n  a\ndkt_ray.errors.StorageError: No space left on device\n"),
            "No space left on device",
        ),
        (TuneError("Traceback\n  a\nPermissionError: [Errno 13] Permission denied: '/x'"), "[Errno 13] Permission"),
        (TuneError("Traceback\n  a\nValueError: OSError: is named only"), None),
    ],
)
def test_what_the_store_refuses_is_told_from_other_errors(error: Exception, found: str | None) -> None:
    told = tuning.refusal(error)
    assert told is None if found is None else found in (told or "")
    with pytest.raises(StorageError if found else TuneError) as raised, tuning._refusals("s/tune"):
        raise error
    assert found is None or "s/tune: the store refuses" in str(raised.value)
    assert found is None or "run the same command again" in str(raised.value)


# --- the sweep's own decisions


MANIFEST = manifest()


def config_of(**settings: Any) -> sweep.TuneConfig:
    return build(sweep.TuneConfig, settings)


def digest(family: str = "lightgbm", manifest: Manifest = MANIFEST, **settings: Any) -> str:
    config = config_of(**settings)
    return sweep._digest(family, sweep._space(family, config), config, manifest)


def test_the_default_is_the_whole_catalog() -> None:
    assert config_of().families == tuple(CATALOG)


@pytest.mark.parametrize("setting", ["families", "resources", "overrides", "spaces"])
def test_an_unknown_family_is_refused(setting: str) -> None:
    value: Any = ["gpt"] if setting == "families" else {"gpt": {}}
    with pytest.raises(ConfigError, match=rf"{setting} is .*no model family 'gpt'; the catalog has lightgbm"):
        config_of(**{setting: value})


def test_an_override_is_fixed_and_no_longer_searched() -> None:
    space = sweep._space("lightgbm", config_of(seed=5, overrides={"lightgbm": {"num_leaves": 7, "rounds": 11}}))
    assert "num_leaves" in CATALOG["lightgbm"].space
    assert "num_leaves" not in {**space.space, **space.default}
    assert (space.fixed["num_leaves"], space.fixed["rounds"], space.fixed["seed"]) == (7, 11, 5)
    settings = {**space.fixed, **space.default}
    assert build(CATALOG["lightgbm"].config, settings).model_dump(mode="json") == settings


def test_an_override_that_the_family_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"overrides\.lightgbm: unknown setting num_leave .*did you mean num_leaves"):
        sweep._space("lightgbm", config_of(overrides={"lightgbm": {"num_leave": 7}}))


def test_the_digest_changes_with_what_decides_the_result_and_with_nothing_else() -> None:
    same = [
        digest(),
        digest(concurrency=1),
        digest(resources={"lightgbm": {"cpus": 2}}),
        digest(families=["lightgbm"]),
        digest(overrides={"lstm_attention": {"epochs": 1}}),
        digest(store="elsewhere", run="r", retries=0, checkpoint_s=1, resume=False, hang_s=9),
    ]
    assert len(set(same)) == 1
    other = [
        digest(trials=9),
        digest(seed=1),
        digest(max_reports=3),
        digest(grace_period=3),
        digest(reduction_factor=2),
        digest(scheduler="median"),
        digest(searcher="random"),
        digest(sample=0.5),
        digest(compute_budget_s=60),
        digest(spaces={"lightgbm": {"num_leaves": [31, 63]}}),
        digest(overrides={"lightgbm": {"rounds": 11}}),
        digest(manifest=MANIFEST.model_copy(update={"fingerprint": "cafe"})),
        digest("lstm_attention"),
    ]
    assert len({same[0], *other}) == len(other) + 1


def result_of(trial: str, auc: float | None, **facts: Any) -> tuning.TrialResult:
    settings = {"num_leaves": len(trial)}
    status: Any = "failed" if auc is None else "finished"
    result = tuning.TrialResult("lightgbm", trial, status, settings, auc, 40, 30, 1.5, [0.5], "")
    return replace(result, **facts)


def test_the_table_of_trials_survives_the_store(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert sweep._stored_trials(store).num_rows == 0
    results = [result_of("t", 0.7), result_of("tt", 0.8, best_iteration=12), result_of("ttt", None, reason="no luck")]
    store.write_table(sweep.TRIALS, sweep._trials_table(results, {"lightgbm": "d1"}))
    trials = sweep._stored_trials(store)
    assert trials.schema.names == sweep.TRIALS_SCHEMA.names
    assert sweep._finished(trials, "d1")
    assert not sweep._finished(trials, "d2")
    assert trials.to_pylist()[1]["best_iteration"] == 12


def test_an_experiment_of_other_settings_is_removed_and_the_same_one_is_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    name = sweep._experiment(store, ["b", "a"], resume=True)
    assert name == sweep._experiment(store, ["a", "b"], resume=True)
    for folder in (name, "stale"):
        store.write(f"tune/{folder}/tuner.pkl", b"x")
    assert sweep._experiment(store, ["a", "b"], resume=True) == name
    assert store.list("tune") == [f"tune/{name}/tuner.pkl"]
    sweep._experiment(store, ["a", "b"], resume=False)
    assert store.list("tune") == []


def test_selecting_users_takes_their_rows_and_no_others() -> None:
    offsets = np.array([0, 2, 5, 6])
    position = np.array([0, 1, 0, 1, 2, 0], np.int32)
    rows = Rows(
        offsets=offsets,
        ids={"question": np.arange(6, dtype=np.int32)},
        concepts=np.zeros((6, 1), np.int32),
        numbers=np.zeros((6, 0), np.float32),
        correct=np.ones(6, np.int8),
        position=position,
        visible=position,
    )
    split = Split(rows, np.array(["u", "v", "w"], object), np.array([0, 1, 0], np.int8))
    inside, outside = select(split, split.fold == 0), select(split, split.fold != 0)
    assert inside.rows.ids["question"].tolist() == [0, 1, 5]
    assert inside.rows.offsets.tolist() == [0, 2, 3]
    assert inside.users.tolist() == ["u", "w"]
    assert outside.rows.ids["question"].tolist() == [2, 3, 4]
    assert outside.fold.tolist() == [1]


@pytest.mark.parametrize(("settings", "kept"), [({}, 4), ({"checkpoint_s": 0}, 102), ({"checkpoint_s": 1}, 22)])
def test_the_checkpoint_of_the_last_book_of_trials_outlives_its_driver(settings: dict[str, Any], kept: int) -> None:
    """A driver killed 20 s after its last snapshot finds there a checkpoint that newer ones have not pushed out."""
    assert tuning._kept(build(tuning.SearchConfig, settings)) == kept
