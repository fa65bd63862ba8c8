"""`dkt tune` on a real Ray cluster: trials, members, reuse, and what happens when something is wrong."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dkt_ray.config import build
from dkt_ray.ensemble import member
from dkt_ray.errors import ConfigError, TrainingError
from dkt_ray.features.dataset import Dataset
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines import sweep
from dkt_ray.schema import UNKNOWN
from dkt_ray.storage import Store, open_store
from dkt_ray.training.protocol import Scored
from dkt_ray.training.search import FamilySearch
from tests.sweep_data import FOLDS, SMALL, prepared

__all__ = ["prepared"]  # a fixture

TRIALS = 2


def tune(store: str, **settings: Any) -> dict[str, Any]:
    overrides = {family: dict(values) for family, values in SMALL.items()}
    for family, values in settings.pop("overrides", {}).items():
        overrides[family] |= values
    fixed = {"store": store, "trials": TRIALS, "families": list(SMALL), "overrides": overrides}
    return sweep.run(build(sweep.TuneConfig, fixed | settings))


def trials_of(store: str, run: str) -> list[dict[str, Any]]:
    return open_store(store).read_table(f"runs/{run}/trials.parquet").to_pylist()


def versions(store: Store, prefix: str) -> dict[str, str]:
    return {key: store.read_versioned(key)[1] for key in store.list(prefix)}


@pytest.fixture(scope="module")
def swept(prepared: str) -> dict[str, Any]:
    """One family first, asking for a GPU that is not there; then the whole catalog in the same run."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("dkt_ray")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        first = tune(prepared, families=["lightgbm"], resources={"lightgbm": {"gpus": 0.5}})
        early = trials_of(prepared, "default")
        result = tune(prepared)
    finally:
        logger.removeHandler(handler)
    return {"first": first, "early": early, "result": result, "lines": [record.getMessage() for record in records]}


def test_every_family_has_exactly_its_trials(prepared: str, swept: dict[str, Any]) -> None:
    trials = trials_of(prepared, "default")
    assert Counter(trial["family"] for trial in trials) == dict.fromkeys(SMALL, TRIALS)
    assert len({trial["trial"] for trial in trials}) == len(trials)
    for trial in trials:
        assert trial["status"] in ("finished", "stopped")
        assert 0 < trial["auc"] == trial["curve"][-1] <= 1
        assert 1 <= trial["best_iteration"] <= trial["iterations"]
        build(CATALOG[trial["family"]].config, json.loads(trial["config"]))
    defaults = [json.loads(t["config"]) for t in trials if t["family"] == "lightgbm"]
    default = build(CATALOG["lightgbm"].config, SMALL["lightgbm"]).model_dump(mode="json")
    assert default in defaults
    assert len({json.dumps(config) for config in defaults}) == TRIALS


def test_a_new_family_does_not_repeat_the_others(prepared: str, swept: dict[str, Any]) -> None:
    assert swept["first"]["reused"] is False
    assert set(swept["first"]["families"]) == {"lightgbm"}
    late = [trial for trial in trials_of(prepared, "default") if trial["family"] == "lightgbm"]
    assert late == swept["early"]
    assert swept["result"]["families"]["lightgbm"] == swept["first"]["families"]["lightgbm"]


def test_a_gpu_that_is_not_there_is_not_waited_for(swept: dict[str, Any]) -> None:
    assert [line for line in swept["lines"] if "asks for" in line] == [
        "lightgbm asks for 0.5 GPU, and no node has one: it runs on CPUs"
    ]


def test_progress_has_a_line_for_each_trial_and_each_fit(swept: dict[str, Any]) -> None:
    endings = [line for line in swept["lines"] if " finished at" in line or " stopped at" in line]
    assert len(endings) == TRIALS * len(SMALL)
    assert f"{TRIALS} of {TRIALS} trials done" in endings[-1]
    assert sum("out-of-fold auc" in line for line in swept["lines"]) == len(SMALL)


@pytest.mark.parametrize("family", list(SMALL))
def test_every_training_answer_is_scored_exactly_once(prepared: str, swept: dict[str, Any], family: str) -> None:
    store = open_store(prepared)
    table = store.read_table(f"runs/default/members/{family}/oof.parquet")
    scored = Scored.from_table(table, family)  # checks order, range and duplicates
    split = Dataset.open(store, "default").load()
    users = np.repeat(split.users, np.diff(split.rows.offsets))
    fold = np.repeat(split.fold, np.diff(split.rows.offsets))
    known = split.rows.correct != UNKNOWN
    columns = (users[known], split.rows.position[known], fold[known], split.rows.correct[known])
    expected = sorted(zip(*(column.tolist() for column in columns), strict=True))
    found = zip(*(table[name].to_pylist() for name in ("user", "position", "fold", "correct")), strict=True)
    assert list(found) == expected
    assert set(scored.fold.tolist()) == set(range(FOLDS))


@pytest.mark.parametrize("family", list(SMALL))
def test_a_member_is_complete_and_its_model_can_be_loaded(
    prepared: str, swept: dict[str, Any], family: str, tmp_path: Path
) -> None:
    store = open_store(prepared)
    facts = store.read_json(f"runs/default/members/{family}/member.json")
    summary = swept["result"]["families"][family]
    assert (facts["auc"], facts["config"], facts["best_iteration"]) == (
        summary["auc"],
        summary["config"],
        summary["iterations"],
    )
    best = max((t for t in trials_of(prepared, "default") if t["family"] == family), key=lambda t: t["auc"])
    assert facts["config"] == json.loads(best["config"])
    assert facts["origin"] == f"trial {best['trial']}"
    if best["status"] == "finished":
        assert facts["best_iteration"] == best["best_iteration"]
    store.download(f"runs/default/members/{family}/model", tmp_path)
    model = member.load(tmp_path)
    rows = Dataset.open(store, "default").load([0]).rows
    refitted = model.score(rows, rows)
    assert np.isfinite(refitted).all()
    oof = store.read_table(f"runs/default/members/{family}/oof.parquet").to_pandas()
    kept = oof[oof.fold == 0]
    fingerprints = {m["fingerprint"] for m in swept["result"]["families"].values()}
    assert fingerprints == {facts["fingerprint"]}
    # the out-of-fold scores are not those of the model that has seen fold 0
    assert len(kept) == (rows.correct != UNKNOWN).sum()
    assert not np.allclose(np.sort(kept.probability), np.sort(refitted[rows.correct != UNKNOWN]))
    assert not [key for key in store.list(f"runs/default/members/{family}") if "/parts/" in key]


def test_a_second_run_changes_nothing(prepared: str, swept: dict[str, Any]) -> None:
    store = open_store(prepared)
    before = versions(store, "runs/default")
    again = tune(prepared, concurrency=1)  # decides how, not what
    assert again["reused"] is True
    assert again["families"] == swept["result"]["families"]
    assert versions(store, "runs/default") == before


def test_parts_of_an_interrupted_run_are_kept(prepared: str, swept: dict[str, Any]) -> None:
    """Without the last fold and the description of a member, only that fold is fitted again, to the same scores."""
    store = open_store(prepared)
    folder = "runs/default/members/lightgbm"
    facts = store.read_json(f"{folder}/member.json")
    oof = store.read_table(f"{folder}/oof.parquet")
    parts = f"{folder}/parts/{facts['digest']}"
    for fold in range(FOLDS - 1):
        of_fold = [value == fold for value in oof["fold"].to_pylist()]
        part = oof.filter(pa.array(of_fold)).replace_schema_metadata({"score_us": "1"})
        store.write_table(f"{parts}/fold-{fold}-0.parquet", part)
    for name in ("refit-0", "iterations"):
        store.write_json(f"{parts}/{name}.json", {"iterations": facts["best_iteration"]})
    model = versions(store, f"{folder}/model")
    store.delete(f"{folder}/member.json")
    started = time.time()
    assert tune(prepared, families=["lightgbm"])["reused"] is False
    assert store.read_json(f"{folder}/member.json") | {"score_us": 0} == facts | {"score_us": 0}
    assert store.read_table(f"{folder}/oof.parquet").equals(oof)
    assert versions(store, f"{folder}/model") == model
    assert all(Path(prepared, key).stat().st_mtime < started for key in store.list(f"{folder}/model"))


def test_another_selection_fits_what_is_new_and_removes_the_rest(prepared: str, swept: dict[str, Any]) -> None:
    store = open_store(prepared)
    folder = "runs/default/members"
    trials, first = trials_of(prepared, "default"), versions(store, f"{folder}/lightgbm")
    more = tune(prepared, top=2, defaults=True)
    assert more["reused"] is False
    assert set(more["members"]) == {*SMALL, *(f"{family}-2" for family in SMALL)}  # two trials: the default is one
    assert trials_of(prepared, "default") == trials  # nothing was searched again
    assert {key: version for key, version in versions(store, f"{folder}/lightgbm").items() if key in first} == first
    facts = [store.read_json(f"{folder}/{name}/member.json") for name in ("lightgbm", "lightgbm-2")]
    assert [fact["family"] for fact in facts] == ["lightgbm", "lightgbm"]
    assert sorted(fact["default"] for fact in facts) == [False, True]
    assert facts[0]["config"] != facts[1]["config"]
    fewer = tune(prepared)
    assert fewer["families"] == swept["result"]["families"] == more["families"]
    assert {key.split("/")[3] for key in store.list(folder)} == set(SMALL)
    assert fewer["reused"] is True


def test_resources_that_nobody_has_are_refused_at_once(prepared: str) -> None:
    with pytest.raises(ConfigError, match=r"resources\.lstm_attention is .*'CPU': 4096.* no node has that much"):
        tune(prepared, run="greedy", resources={"lstm_attention": {"cpus": 4096}})
    assert open_store(prepared).list("runs/greedy") == []


def test_a_trial_that_fails_does_not_end_the_sweep(prepared: str) -> None:
    """64 heads do not divide a width of 32: such a trial raises, the default (64) and others do not."""
    overrides = {"lstm_attention": {"heads": 64, "epochs": 1}}
    seed = next(seed for seed in range(100) if 32 in widths(overrides["lstm_attention"], seed))
    result = tune(prepared, run="failing", families=["lstm_attention"], seed=seed, overrides=overrides)
    trials = trials_of(prepared, "failing")
    assert sorted(trial["status"] for trial in trials) == ["failed", "finished"]
    failed = next(trial for trial in trials if trial["status"] == "failed")
    assert "width 32 is not a multiple of heads 64" in failed["reason"]
    assert failed["auc"] is None
    assert result["families"]["lstm_attention"]["config"]["width"] == 64


def widths(fixed: dict[str, Any], seed: int) -> list[int]:
    """Widths that the searcher is going to try."""
    config = build(sweep.TuneConfig, {"seed": seed, "overrides": {"lstm_attention": SMALL["lstm_attention"] | fixed}})
    families = {"lstm_attention": sweep._space("lstm_attention", config)}
    search = FamilySearch(families, {"lstm_attention": {"CPU": 1.0}}, TRIALS, seed, lambda: {"CPU": 1.0}, TRIALS)
    found = []
    for number in range(TRIALS):
        suggestion = search.suggest(str(number))
        assert isinstance(suggestion, dict)
        found.append(suggestion["settings"]["width"])
        search.on_trial_complete(str(number), {"auc": 0.7})
    return found


def test_a_family_of_which_no_trial_finishes_ends_the_sweep_with_the_reason_after_the_others(prepared: str) -> None:
    """An error from below (LightGBM knows trees of 131,072 leaves at most) is retried once, then booked."""
    overrides = {"lightgbm": {"num_leaves": 200_000}, "lstm_attention": {"epochs": 1}}
    with pytest.raises(TrainingError, match=r"no trial of lightgbm finished \(1 tried\): .*LightGBMError:.*leaves"):
        tune(prepared, run="hopeless", trials=1, overrides=overrides)
    trials = {trial["family"]: trial for trial in trials_of(prepared, "hopeless")}
    assert trials["lstm_attention"]["status"] == "finished"
    assert trials["lightgbm"]["status"] == "failed"
    assert json.loads(trials["lightgbm"]["config"])["num_leaves"] == 200_000
    assert open_store(prepared).list("runs/hopeless/members") == []


def test_the_sweep_runs_in_a_bucket_and_leaves_no_secret_there(prepared: str, seaweedfs: str) -> None:
    bucket = f"{seaweedfs}/sweep"
    local, store = open_store(prepared), open_store(bucket)
    for key in local.list("datasets"):
        store.write(key, local.read(key))
    result = tune(bucket, families=["lightgbm"], checkpoint_s=0)
    assert result["families"]["lightgbm"]["trials"] == TRIALS
    private = store.list("runs/default/tune")
    assert any(key.endswith("tuner.pkl") for key in private)
    assert any("/checkpoint_" in key for key in private)
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert [key for key in store.list("runs") if secret in store.read(key)] == []
    assert tune(bucket, families=["lightgbm"])["reused"] is True
