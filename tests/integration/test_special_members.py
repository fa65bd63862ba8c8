"""`dkt tune` with shift forms and neighbours: members like any other, and the shift form of the very same fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dkt_ray.config import build
from dkt_ray.ensemble import member
from dkt_ray.ensemble.member import Mean, Stacked, with_log_odds
from dkt_ray.ensemble.neighbours import Neighbours, NeighboursConfig
from dkt_ray.ensemble.shift import Shifted
from dkt_ray.errors import ConfigError
from dkt_ray.features.dataset import Dataset
from dkt_ray.models.lgbm import LightGBMConfig
from dkt_ray.pipelines import sweep
from dkt_ray.storage import Store, open_store
from dkt_ray.training.fit import fit
from dkt_ray.training.folds import TrainingUsers
from dkt_ray.training.protocol import Scored
from dkt_ray.training.selection import STACKED_TABLE
from tests.sweep_data import FOLDS, SMALL, prepared

__all__ = ["prepared"]  # a fixture

FAMILY = "lstm_attention"


def tune(store: str, **settings: Any) -> dict[str, Any]:
    overrides = {FAMILY: SMALL[FAMILY] | {"epochs": 1, "width": 8}, "lightgbm": SMALL["lightgbm"]}
    fixed = {"store": store, "run": "special", "trials": 1, "families": [FAMILY], "overrides": overrides}
    return sweep.run(build(sweep.TuneConfig, fixed | settings))


SPECIAL = {"shifts": {FAMILY: 2}, "neighbours": {"k": 5}, "stacked": [FAMILY], "served": "folds"}


@pytest.fixture(scope="module")
def made(prepared: str) -> dict[str, Any]:
    return tune(prepared, **SPECIAL)


@pytest.fixture(scope="module")
def users(prepared: str) -> TrainingUsers:
    dataset = Dataset.open(open_store(prepared), "default")
    return TrainingUsers(dataset.load(), dataset.state)


def run_of(store: str) -> Store:
    return open_store(store).child("runs/special")


def load(store: str, name: str, folder: Path) -> Mean:
    run_of(store).download(f"members/{name}/model", folder / name)
    found = member.load(folder / name)
    assert isinstance(found, Mean)
    assert len(found.parts) == FOLDS
    return found


def oof(store: str, name: str) -> Scored:
    return Scored.from_table(run_of(store).read_table(f"members/{name}/oof.parquet"), name)


def test_they_are_members_like_any_other(prepared, made):
    assert list(made["members"]) == [FAMILY, f"{FAMILY}-shift", "neighbours", "lightgbm-stacked"]
    facts = {name: run_of(prepared).read_json(f"members/{name}/member.json") for name in made["members"]}
    assert {name: fact["auc"] for name, fact in facts.items()} == made["members"]
    assert [fact["family"] for fact in facts.values()] == [FAMILY, FAMILY, "neighbours", "lightgbm"]
    assert len({fact["fingerprint"] for fact in facts.values()}) == 1
    assert [fact["default"] for fact in facts.values()] == [True, False, True, False]
    assert all(fact["score_us"] > 0 for fact in facts.values())
    assert facts["lightgbm-stacked"]["score_us"] > facts[FAMILY]["score_us"]  # it asks the network anew
    assert tune(prepared, **SPECIAL)["reused"] is True


def test_the_shift_form_reads_the_same_fits_more_often(prepared, made, users, tmp_path):
    own, shifted = (load(prepared, name, tmp_path) for name in (FAMILY, f"{FAMILY}-shift"))
    found = oof(prepared, f"{FAMILY}-shift")
    for fold, (network, form) in enumerate(zip(own.parts, shifted.parts, strict=True)):
        assert isinstance(form, Shifted)
        rows = users.holding_out(fold)[1].rows
        np.testing.assert_array_equal(form.network.score(rows, rows), network.score(rows, rows))
        np.testing.assert_array_equal(found.probability[found.fold == fold], Shifted.of(network, 2).score(rows, rows))
    assert (oof(prepared, FAMILY).probability != found.probability).mean() > 0.5


def test_neighbours_are_users_of_other_folds(prepared, made, users, tmp_path):
    served, found = load(prepared, "neighbours", tmp_path), oof(prepared, "neighbours")
    for fold, part in enumerate(served.parts):
        data, held_out = users.holding_out(fold)
        expected = Neighbours.fit(NeighboursConfig(k=5), data.train, users.state)
        score = expected.score(held_out.rows, held_out.rows)
        np.testing.assert_array_equal(part.score(held_out.rows, held_out.rows), score)
        np.testing.assert_array_equal(found.probability[found.fold == fold], score)
        flipped = replace(held_out.rows, correct=(1 - held_out.rows.correct).astype(np.int8))
        np.testing.assert_array_equal(part.score(flipped, flipped), score)


def test_a_stack_is_fitted_on_out_of_fold_log_odds_of_other_folds_only(prepared, made, users, tmp_path):
    served, found, network = (
        load(prepared, STACKED_TABLE, tmp_path),
        oof(prepared, STACKED_TABLE),
        oof(prepared, FAMILY),
    )
    reading = users.reading({FAMILY: network})
    facts = run_of(prepared).read_json(f"members/{STACKED_TABLE}/member.json")
    for fold, part in enumerate(served.parts):
        assert isinstance(part, Stacked)
        data, held_out = reading.holding_out(fold)
        config = build(LightGBMConfig, facts["config"])
        again = fit("lightgbm", config, replace(data, valid=None), iterations=facts["best_iteration"]).model
        score = again.score(held_out.rows, held_out.rows)
        np.testing.assert_array_equal(found.probability[found.fold == fold], score)
        rows = users.holding_out(fold)[1].rows  # without the columns: served, it asks the networks itself
        p = part.parts[0].score(rows, rows)
        np.testing.assert_array_equal(part.score(rows, rows), again.score(rows, with_log_odds(rows, [p])))


@pytest.mark.parametrize("name", ["lightgbm", "saint", "gru"])
def test_a_stack_on_what_is_no_network_of_the_run_is_refused(name, prepared):
    with pytest.raises(ConfigError, match=f"stacked names '{name}'; the networks among families are {FAMILY}"):
        tune(prepared, stacked=[name])


@pytest.mark.parametrize(
    ("shifts", "message"),
    [
        ({"lightgbm": 3}, "lightgbm is no network and reads no rows one by one"),
        ({FAMILY: 1}, "has 1 readings; give 2 or more"),
        ({"gru": 2}, "no model family 'gru'"),
    ],
)
def test_shifts_of_what_has_none_are_refused(shifts, message, prepared):
    with pytest.raises(ConfigError, match=message):
        tune(prepared, shifts=shifts)


def test_what_is_not_wanted_any_more_is_gone(prepared, made):
    assert list(tune(prepared)["members"]) == [FAMILY]
    assert {key.split("/")[1] for key in run_of(prepared).list("members")} == {FAMILY}
