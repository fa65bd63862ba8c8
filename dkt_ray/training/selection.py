"""From trials to members: which settings of which family are fitted, under which names, and what each fit of them is.

A member is named after its family: `lstm` is the family's best trial, `lstm-2` the second best, `lstm-default` the
family's default settings, and `lstm-shift` the shift form of `lstm`, made of the same fits; `lightgbm-stacked` reads
what others say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final, Literal

from pydantic import Field

from dkt_ray import __version__
from dkt_ray.config import Config
from dkt_ray.ensemble.families import NEIGHBOURS
from dkt_ray.ensemble.neighbours import NeighboursConfig
from dkt_ray.errors import TrainingError

Served = Literal["refit", "folds"]

TABLE: Final = "lightgbm"  # the family that stacks
STACKED_TABLE: Final = f"{TABLE}-stacked"  # the LightGBM that reads other members
DEFAULT: Final = "default"  # origin of a member that no trial stands for, and the end of its name
SHIFT: Final = "shift"  # the end of the name of a member's shift form
STOPPING_FOLD: Final = 0  # where the number of iterations is found, as in the trials


class SelectionConfig(Config):
    """Which of the searched settings become members, and what a member is."""

    top: int = Field(default=1, ge=1)
    """Best trials of each family (of distinct settings) that become members: lstm, lstm-2, ..."""
    defaults: bool = False
    """Also fit each family's default settings, as lstm-default, unless one of its members has them already."""
    seeds: int = Field(default=1, ge=1)
    """A member is the mean over models of so many seeds, out of fold and served."""
    served: Served = "refit"
    """What is served: a model refitted on all folds, or the mean of the models of the folds."""
    shifts: dict[str, int] = Field(default_factory=dict)
    """Networks that also come in their shift form, e.g. {saint: 3}: <name>-shift is the mean of so many readings, each
    without one more of the oldest rows; no further fit, but another count fits anew."""
    neighbours: NeighboursConfig | None = None
    """Also make the member `neighbours`, the mean answer of the nearest training rows: {} or, e.g., {k: 32}."""
    stacked: tuple[str, ...] = ()
    """Networks whose out-of-fold log-odds are further columns of one more LightGBM, e.g. [saint, lstm]: the member
    `lightgbm-stacked`, with the settings of the run's best `lightgbm`, or else the family's default ones."""
    folds_parallel: bool = True
    """Fit the folds of a member at the same time; false: in turn, to the same scores."""


@dataclass(frozen=True)
class Chosen:
    """A member to be fitted on every fold."""

    name: str
    family: str
    settings: Mapping[str, Any]
    iterations: int | None  # epochs or rounds of every fit, as fold 0 found them; None: to be found there
    dataset: str  # fingerprint of the data
    origin: str = DEFAULT  # or "trial <id>"
    default: bool = True  # whether these are the family's default settings
    trials: int = 0  # from which it was chosen
    seeds: int = 1
    served: Served = "refit"
    shifts: int = 1  # of the shift form beside the member; 1: none
    reads: Mapping[str, str] = field(default_factory=dict)  # members whose log-odds are columns, and their digests

    @property
    def digest(self) -> str:
        """Of everything that decides the member."""
        facts = {"version": __version__} | {
            name: getattr(self, name)
            for name in ("dataset", "family", "settings", "iterations", "seeds", "served")  # not where it came from
        }
        if self.shifts > 1:
            facts["shifts"] = self.shifts
        if self.reads:
            facts["reads"] = dict(self.reads)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """Where the member lies in the run."""
        return f"members/{self.name}"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the member and of its shift form, if it has one."""
        return (self.name,) if self.shifts == 1 else (self.name, f"{self.name}-{SHIFT}")

    @property
    def parts(self) -> str:
        """Where finished parts are kept."""
        return f"{self.folder}/parts/{self.digest}"

    @property
    def notes(self) -> dict[str, Any]:
        """What the member's description says of where it came from; another trial may have led to the same."""
        return {"origin": self.origin, "default": self.default, "trials": self.trials}

    def notes_of(self, name: str) -> dict[str, Any]:
        """The same of the member or of its shift form."""
        return self.notes if name == self.name else self.notes | {"origin": f"{SHIFT} of {self.name}", "default": False}


@dataclass(frozen=True)
class Fit:
    """One fit of a member; `iterations` finds their number, for the others."""

    choice: Chosen
    kind: Literal["iterations", "fold", "refit"]
    fold: int = 0  # held out
    number: int = 0  # of the seed

    @property
    def key(self) -> str:
        """The part that is there when the fit is done."""
        names = {
            "iterations": "iterations.json",
            "fold": f"fold-{self.fold}-{self.number}.parquet",
            "refit": f"refit-{self.number}.json",
        }
        return f"{self.choice.parts}/{names[self.kind]}"

    @property
    def shift_key(self) -> str:
        """The scores of a fold by the shift form; there before the part itself is."""
        return f"{self.choice.parts}/{SHIFT}-{self.fold}-{self.number}.parquet"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the member with the seed of this fit."""
        return {**self.choice.settings, "seed": self.choice.settings.get("seed", 0) + self.number}

    @property
    def model(self) -> str | None:
        """Where the fitted model belongs; None: it is not served."""
        return self.model_of(self.choice.name)

    def model_of(self, name: str) -> str | None:
        """The same for the member or its shift form."""
        if self.kind != ("fold" if self.choice.served == "folds" else "refit"):
            return None
        folder = f"members/{name}/model"
        if self.choice.served == "refit" and self.choice.seeds == 1:
            return folder
        return f"{folder}/{self.fold * self.choice.seeds + self.number}"

    def __str__(self) -> str:
        what = {
            "iterations": f"stopped by fold {self.fold}",
            "fold": f"without fold {self.fold}",
            "refit": "on all folds",
        }
        return f"{self.choice.name} {what[self.kind]}" + (f", seed {self.number}" if self.number else "")


def choose(
    family: str,
    trials: Sequence[Mapping[str, Any]],
    default: Mapping[str, Any],
    config: SelectionConfig,
    dataset: str,
    whole: bool = True,
) -> list[Chosen]:
    """The members of a family.

    Args:
        family: key of the catalog.
        trials: all of the family's trials: trial, status, auc (None: failed), config (JSON), best_iteration, reason,
            schedule (JSON: [[reports before it, settings in force from then on], ...]; None: they never changed).
        default: the family's default settings, with those that are fixed.
        config: how many, and of what kind.
        dataset: fingerprint of the data.
        whole: the trials ran on all users; where they ran on a sample, or were cut short, only settings are taken from
            them, and the number of iterations is found anew.

    Raises:
        TrainingError: no trial finished; it says why.
    """
    finished = sorted((row for row in trials if row["auc"] is not None), key=lambda row: -row["auc"])
    if not finished:
        reasons = "; ".join(sorted({row["reason"] for row in trials if row["reason"]}))
        raise TrainingError(
            f"no trial of {family} finished ({len(trials)} tried): {reasons or 'the time budget was too short'}"
        )
    distinct: dict[str, Mapping[str, Any]] = {}  # the best trial of each settings, best first
    for row in finished:
        distinct.setdefault(_text(_settings(row)), row)
    best = list(distinct)[: config.top]
    wanted = {family if place == 1 else f"{family}-{place}": text for place, text in enumerate(best, start=1)}
    if config.defaults and _text(default) not in best:
        wanted[f"{family}-{DEFAULT}"] = _text(default)
    return [
        Chosen(
            name=name,
            family=family,
            settings=json.loads(text),
            iterations=_iterations(distinct.get(text), whole),
            dataset=dataset,
            origin=f"trial {distinct[text]['trial']}" if text in distinct else DEFAULT,
            default=text == _text(default),
            trials=len(trials),
            seeds=config.seeds,
            served=config.served,
            shifts=config.shifts.get(family, 1),
        )
        for name, text in wanted.items()
    ]


def nearest(config: SelectionConfig, dataset: str) -> list[Chosen]:
    """The member `neighbours`, if it is wanted."""
    if config.neighbours is None:
        return []
    settings = config.neighbours.model_dump(mode="json")
    return [Chosen(NEIGHBOURS, NEIGHBOURS, settings, 1, dataset, seeds=config.seeds, served=config.served)]


def stacked(
    choices: Sequence[Chosen], config: SelectionConfig, default: Mapping[str, Any], dataset: str
) -> list[Chosen]:
    """The member `lightgbm-stacked`, if it is wanted; its rounds are found anew, for its columns are others.

    Args:
        choices: the other members, those that it reads among them.
        default: LightGBM's default settings, with those that are fixed.
    """
    if not config.stacked:
        return []
    by_name = {choice.name: choice for choice in choices}
    settings = by_name[TABLE].settings if TABLE in by_name else default
    reads = {name: by_name[name].digest for name in config.stacked}
    return [
        Chosen(
            *(STACKED_TABLE, TABLE, settings, None, dataset),
            origin=f"{TABLE} on {', '.join(reads)}",
            default=False,
            seeds=config.seeds,
            served=config.served,
            reads=reads,
        )
    ]


def stale(there: Collection[str], families: Collection[str], choices: Sequence[Chosen]) -> list[str]:
    """Names of members of the families that an earlier selection made and this one does not want.

    Args:
        there: names of the run's members.
        families: those of this selection; members of others stay.
        choices: the members that are wanted.
    """
    wanted = {name for choice in choices for name in choice.names}
    ours = {*families, STACKED_TABLE}
    return sorted(name for name in set(there) - wanted if name.partition("-")[0] in ours or name in ours)


def fits_of(choices: Sequence[Chosen], folds: int) -> list[Fit]:
    """Every fit of the members, those that others wait for first, then the longest, the members taking turns."""
    waves = zip_longest(*(_fits(choice, folds) for choice in choices))
    return [fit for wave in waves for fit in wave if fit is not None]


def startable(todo: Sequence[Fit], running: Collection[Fit], parallel: bool) -> Fit | None:
    """The first fit that need not wait: for the number of iterations, or, in turn, for another fit of its member."""
    busy = {fit.choice.name for fit in running if not parallel or fit.kind == "iterations"}
    for fit in todo:
        if fit.choice.name not in busy:
            return fit
        if fit.kind == "iterations":
            busy.add(fit.choice.name)
    return None


def _fits(choice: Chosen, folds: int) -> list[Fit]:
    seeds = range(choice.seeds)
    found = [] if choice.iterations else [Fit(choice, "iterations", STOPPING_FOLD)]
    refits = [Fit(choice, "refit", number=number) for number in seeds] if choice.served == "refit" else []
    return [*found, *refits, *(Fit(choice, "fold", fold, number) for fold in range(folds) for number in seeds)]


def _settings(trial: Mapping[str, Any]) -> dict[str, Any]:
    """What the trial was fitted with, at its end where that changed on the way."""
    settings: dict[str, Any] = json.loads(trial["config"])
    return settings | (json.loads(trial["schedule"])[-1][1] if trial.get("schedule") else {})


def _iterations(trial: Mapping[str, Any] | None, whole: bool) -> int | None:
    """What the trial found, where it ran on all users, to its own end, and with one set of settings."""
    if trial is None or not whole or trial["status"] != "finished" or trial.get("schedule"):
        return None
    return int(trial["best_iteration"])


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
