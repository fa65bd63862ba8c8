"""`training.selection`: which settings become members, under which names, and which fit may start when."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dkt_ray.config import build
from dkt_ray.errors import TrainingError
from dkt_ray.pipelines import sweep
from dkt_ray.storage import open_store
from dkt_ray.training.folds import member_key
from dkt_ray.training.selection import Chosen, Fit, SelectionConfig, choose, fits_of, stacked, stale, startable

DEFAULT = {"width": 64, "seed": 0}
CHOSEN = Chosen("lstm", "lstm", DEFAULT, 3, "data")


def trial(name: str, auc: float | None, width: int, **facts: Any) -> dict[str, Any]:
    row = {"trial": name, "auc": auc, "config": json.dumps({"seed": 0, "width": width}), "reason": ""}
    return row | {"status": "failed" if auc is None else "finished", "best_iteration": 5} | facts


def chosen(*trials: dict[str, Any], whole: bool = True, **settings: Any) -> dict[str, Chosen]:
    config = build(SelectionConfig, settings)
    return {choice.name: choice for choice in choose("lstm", trials, DEFAULT, config, "data", whole)}


TRIALS = (trial("a", 0.7, 64), trial("b", 0.8, 32), trial("c", 0.75, 32), trial("d", None, 16), trial("e", 0.72, 8))


def test_the_best_trial_of_a_family_is_its_member() -> None:
    [(name, member)] = chosen(*TRIALS).items()
    assert (name, member.settings["width"], member.iterations) == ("lstm", 32, 5)
    assert member.notes == {"origin": "trial b", "default": False, "trials": 5}


def test_the_next_best_have_other_settings_and_numbers() -> None:
    members = chosen(*TRIALS, top=3)
    widths = {name: member.settings["width"] for name, member in members.items()}
    assert widths == {"lstm": 32, "lstm-2": 8, "lstm-3": 64}
    assert members["lstm-3"].default
    assert list(chosen(*TRIALS, top=9)) == list(members)  # no more than there are


def test_the_default_is_a_member_unless_it_is_one_already() -> None:
    members = chosen(*TRIALS, defaults=True)
    assert list(members) == ["lstm", "lstm-default"]
    assert members["lstm-default"].settings == DEFAULT
    assert members["lstm-default"].notes == {"origin": "trial a", "default": True, "trials": 5}
    assert list(chosen(*TRIALS, defaults=True, top=3)) == ["lstm", "lstm-2", "lstm-3"]
    untried = chosen(trial("b", 0.8, 32), defaults=True)["lstm-default"]
    assert (untried.origin, untried.iterations) == ("default", None)


def test_iterations_are_found_anew_where_the_trial_did_not_run_to_its_end_on_all_users() -> None:
    stopped = trial("b", 0.8, 32, status="stopped")
    assert chosen(stopped)["lstm"].iterations is None
    assert chosen(*TRIALS, whole=False)["lstm"].iterations is None
    known = [fit.kind for fit in fits_of([CHOSEN], 2)]
    assert known == ["refit", "fold", "fold"]
    assert [fit.kind for fit in fits_of([replace(CHOSEN, iterations=None)], 2)] == ["iterations", *known]


def test_settings_that_changed_on_the_way_are_taken_as_they_were_at_the_end() -> None:
    schedule = [[0, {"rate": 0.1}], [2, {"rate": 0.3}], [4, {"rate": 0.2}]]
    member = chosen(trial("p", 0.9, 32, schedule=json.dumps(schedule)))["lstm"]
    assert member.settings == {"seed": 0, "width": 32, "rate": 0.2}
    assert member.iterations is None  # no fit of these settings has run so far
    assert chosen(trial("p", 0.9, 32, schedule=None))["lstm"].iterations == 5


def test_a_family_without_a_finished_trial_says_why() -> None:
    with pytest.raises(TrainingError, match=r"no trial of lstm finished \(1 tried\): loss is nan at step 3"):
        chosen(trial("d", None, 16, reason="loss is nan at step 3"))
    with pytest.raises(TrainingError, match=r"no trial of lstm finished \(0 tried\): the time budget was too short"):
        chosen()


def test_the_digest_is_of_what_decides_a_member_and_of_nothing_else() -> None:
    same = [CHOSEN, replace(CHOSEN, origin="trial x", trials=7, default=False), replace(CHOSEN, name="lstm-2")]
    assert len({choice.digest for choice in same}) == 1
    other = [
        replace(CHOSEN, **change)
        for change in (
            {"family": "akt"},
            {"settings": {"width": 32}},
            {"iterations": None},
            {"dataset": "other"},
            {"seeds": 2},
            {"served": "folds"},
        )
    ]
    assert len({choice.digest for choice in [CHOSEN, *other]}) == len(other) + 1


def test_a_shift_form_is_a_member_beside_its_own() -> None:
    shifted = replace(CHOSEN, shifts=3)
    assert replace(CHOSEN, shifts=1).digest == CHOSEN.digest
    assert len({CHOSEN.digest, shifted.digest, replace(CHOSEN, shifts=2).digest}) == 3
    assert (CHOSEN.names, shifted.names) == (("lstm",), ("lstm", "lstm-shift"))
    assert shifted.notes_of("lstm") == shifted.notes == CHOSEN.notes
    assert shifted.notes_of("lstm-shift") == CHOSEN.notes | {"origin": "shift of lstm", "default": False}
    assert stale(["lstm", "lstm-shift"], ["lstm"], [shifted]) == []
    assert stale(["lstm", "lstm-shift"], ["lstm"], [CHOSEN]) == ["lstm-shift"]
    assert [fit.model_of("lstm-shift") for fit in fits_of([shifted], 2)] == ["members/lstm-shift/model", None, None]


def test_a_stack_takes_the_settings_of_the_best_lightgbm_and_hangs_on_what_it_reads() -> None:
    config = SelectionConfig(stacked=("lstm",), seeds=2)
    table = replace(CHOSEN, name="lightgbm", family="lightgbm", settings={"rounds": 7})
    (found,) = stacked([CHOSEN, table], config, {"rounds": 800}, "data")
    assert (found.name, found.family, found.settings, found.iterations) == (
        "lightgbm-stacked",
        "lightgbm",
        {"rounds": 7},
        None,
    )
    assert (found.reads, found.origin, found.seeds) == ({"lstm": CHOSEN.digest}, "lightgbm on lstm", 2)
    (other,) = stacked([replace(CHOSEN, iterations=99)], config, {"rounds": 7}, "data")
    assert other.settings == found.settings
    assert other.digest != found.digest
    assert stacked([CHOSEN], SelectionConfig(), {}, "data") == []
    assert stale(["lightgbm", "lightgbm-stacked"], ["lstm"], [CHOSEN]) == ["lightgbm-stacked"]
    assert stale(["lightgbm-stacked"], ["lstm"], [found]) == []


def test_members_of_the_families_that_are_not_wanted_any_more_are_stale() -> None:
    there = ["lstm", "lstm-2", "lstm-default", "lstm_attention", "akt-2"]
    assert stale(there, ["lstm", "akt"], [CHOSEN]) == ["akt-2", "lstm-2", "lstm-default"]
    assert stale(there, ["lstm_attention"], [replace(CHOSEN, name="lstm_attention")]) == []


@pytest.mark.parametrize(
    ("seeds", "served", "models"),
    [
        (1, "refit", ["model"]),
        (2, "refit", ["model/0", "model/1"]),
        (1, "folds", ["model/0", "model/1", "model/2"]),
        (2, "folds", [f"model/{number}" for number in range(6)]),
    ],
)
def test_what_is_served_has_a_place_for_every_model(seeds: int, served: Any, models: list[str]) -> None:
    fits = fits_of([replace(CHOSEN, seeds=seeds, served=served)], 3)
    assert [fit.model for fit in fits if fit.model is not None] == [f"members/lstm/{place}" for place in models]
    assert sum(fit.kind == "fold" for fit in fits) == 3 * seeds  # out-of-fold scores of every seed
    assert len({fit.key for fit in fits}) == len({str(fit) for fit in fits}) == len(fits)
    assert {fit.settings["seed"] for fit in fits} == set(range(seeds))
    assert str(fits[-1]) == "lstm without fold 2" + (", seed 1" if seeds == 2 else "")


def test_a_fit_waits_for_the_number_of_iterations_and_in_turn_for_its_member() -> None:
    unknown, known = replace(CHOSEN, name="lstm-2", iterations=None), CHOSEN
    todo = fits_of([unknown, known], 2)
    assert [(fit.choice.name, fit.kind) for fit in todo[:3]] == [
        ("lstm-2", "iterations"),
        ("lstm", "refit"),
        ("lstm-2", "refit"),
    ]
    find, refit, waits, fold = todo[:4]
    assert startable(todo, [], parallel=True) is find
    assert startable(todo[1:], [find], parallel=True) is refit
    assert startable([waits, fold], [find, refit], parallel=True) is fold
    assert startable([waits, fold], [find, refit], parallel=False) is None  # another fit of lstm is at work
    assert startable([waits], [find], parallel=True) is None
    assert startable([waits, fold], [refit], parallel=False) is waits
    assert startable([], [], parallel=True) is None
    assert fold == Fit(known, "fold", 0)


def test_a_run_keeps_the_members_that_are_wanted_and_says_where_they_came_from_now(tmp_path: Path) -> None:
    run = open_store(tmp_path)
    for name in ("lstm", "lstm-2", "akt"):
        run.write_json(member_key(name), {"digest": CHOSEN.digest, "auc": 0.7} | CHOSEN.notes)
    run.write("members/lstm-default/parts/x/refit-0.json", b"{}")  # of a selection that was interrupted
    again = replace(CHOSEN, origin="trial z", trials=9)  # another search led to the same settings
    assert sweep._settle([again], ["lstm"], run) == {"lstm": {"digest": CHOSEN.digest, "auc": 0.7} | again.notes}
    assert run.list("members") == ["members/akt/member.json", "members/lstm/member.json"]
    assert run.read_json(member_key("lstm"))["origin"] == "trial z"
    assert run.read_json(member_key("akt"))["origin"] == "default"
    version = run.read_versioned(member_key("lstm"))
    sweep._settle([again], ["lstm"], run)
    assert run.read_versioned(member_key("lstm")) == version  # nothing to say, nothing written
