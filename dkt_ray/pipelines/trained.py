"""The models that `dkt train` stored in a run: their scores of one fold's users, their report, and they themselves.

A model's folder, `runs/<run>/trained/<name>/`, holds what training/tracking.py writes, and scores.parquet (of the
validation users), model/, refit/model/ (fitted on all folds), importance.svg (where the family knows what its columns
matter), report.json, report.html, and, last, train.json.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dkt_ray.data.history import Coded
from dkt_ray.ensemble.blend import blend, equal
from dkt_ray.errors import ConfigError
from dkt_ray.features.dataset import Dataset, Split
from dkt_ray.log import progress
from dkt_ray.metrics import first_attempts
from dkt_ray.models.base import Model
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines.figures import (
    Answers,
    Contender,
    Heading,
    Settings,
    make_report,
    measure_in_turn,
)
from dkt_ray.pipelines.yardstick import Simulator, oracle, yardstick
from dkt_ray.storage import Store
from dkt_ray.training.baselines import BASELINES
from dkt_ray.training.protocol import Scored, align_members, evaluation_set, locate

FOLDER: Final = "trained"
DONE: Final = "train.json"  # its presence means that the model is complete
SCORES: Final = "scores.parquet"
MODEL: Final = "model"
REFIT: Final = "refit"
HOW: Final = "Students of fold {fold}, scored by models that were fitted on the other folds; fold {fold} stopped them."

Floats = npt.NDArray[np.float64]


def models(run: Store) -> dict[str, dict[str, Any]]:
    """train.json of every complete model of a run, by name."""
    names = sorted({key.split("/")[1] for key in run.list(FOLDER) if key.endswith(f"/{DONE}")})
    return {name: run.read_json(f"{FOLDER}/{name}/{DONE}") for name in names}


def load(run: Store, dataset: Dataset, names: Sequence[str]) -> dict[str, Model]:
    """Models of the run, fitted on all folds where they were refitted.

    Raises:
        ConfigError: one was fitted on other data.
    """
    loaded = {}
    for name in names:
        facts = run.read_json(f"{FOLDER}/{name}/{DONE}")
        _check_dataset(name, facts, dataset)
        folder = run.child(f"{FOLDER}/{name}")
        loaded[name] = load_model(folder.child(REFIT) if facts["refit"] else folder, facts["family"])
    return loaded


def load_model(folder: Store, family: str) -> Model:
    """The fitted model of a folder."""
    with tempfile.TemporaryDirectory() as local:
        folder.download(MODEL, Path(local))
        return CATALOG[family].model.load(Path(local))


def report(
    run: Store,
    dataset: Dataset,
    names: Sequence[str],
    title: str,
    how: Settings,
    peers: Mapping[str, Scored] | None = None,
    simulator: Simulator | None = None,
) -> dict[str, Any]:
    """The report of some models of a run on the users of the fold that none of them was fitted on.

    Args:
        names: of the models; several are also averaged with equal weights.
        title: of the run.
        peers: scores of the same rows from elsewhere.
        simulator: of simulated data.

    Raises:
        ConfigError: they were validated on different folds, or fitted on other data.
    """
    facts = {name: run.read_json(f"{FOLDER}/{name}/{DONE}") for name in names}
    for name, fact in facts.items():
        _check_dataset(name, fact, dataset)
    if simulator is not None:
        simulator.check(dataset.manifest)
    fold = _one_fold(facts)
    scored = {name: Scored.from_table(run.read_table(f"{FOLDER}/{name}/{SCORES}"), f"model {name}") for name in names}
    base, columns = align_members(scored)
    split = dataset.load({fold})
    owner, place = _places(split, base)
    histories, _ = dataset.load_histories({fold})
    first = first_attempts(owner, histories.question.codes)[place]
    contenders = {name: Contender("member", columns[:, k]) for k, name in enumerate(scored)}
    weights = {}
    if len(names) > 1:
        contenders = {"ensemble": Contender("ensemble", blend(columns, equal(len(names)))), **contenders}
        weights = {"equal": dict.fromkeys(names, 1 / len(names))}
    for name, column in _baselines(run, dataset, split, fold).items():
        contenders[name] = Contender("baseline", column[place])
    for name, peer in (peers or {}).items():
        contenders[name] = Contender("peer", align_peer(name, peer, base))
    contenders |= oracle(simulator, dataset.manifest, base)
    answers = Answers.of(base, first)
    made = make_report(
        Heading(f"Validation report of {title}", HOW.format(fold=fold), dataset.name, title),
        evaluation_set(dataset.manifest, base),
        answers,
        contenders,
        weights,
        how,
        measure_in_turn,
    )
    return made | yardstick(simulator, histories, base, answers, contenders, how)


def align_peer(name: str, peer: Scored, base: Scored) -> Floats:
    """The peer's probability of each of the given rows.

    Raises:
        ConfigError: rows are missing, or their answers differ.
    """
    place = locate(peer.user, peer.position, base)
    if (lost := int((place < 0).sum())) or not np.array_equal(peer.correct[place], base.correct):
        what = f"{lost} of {base.rows} scored rows are not in it" if lost else "its answers are not the dataset's"
        raise ConfigError(f"peers.{name}: {what}; score every answer of the same users, or leave it out")
    return peer.probability[place]


def _one_fold(facts: Mapping[str, Mapping[str, Any]]) -> int:
    folds = {name: int(fact["fold"]) for name, fact in facts.items()}
    if len(set(folds.values())) > 1:
        told = ", ".join(f"{name}: {fold}" for name, fold in folds.items())
        raise ConfigError(f"the models were validated on different folds ({told}); name those of one fold in `members`")
    return next(iter(folds.values()))


def _check_dataset(name: str, facts: Mapping[str, Any], dataset: Dataset) -> None:
    if facts["dataset"] != dataset.manifest.fingerprint:
        raise ConfigError(
            f"model {name} was fitted on data with fingerprint {facts['dataset']}, dataset {dataset.name} now has "
            f"{dataset.manifest.fingerprint}: run dkt train again with resume=false"
        )


def _places(split: Split, base: Scored) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Whose row each row of the split is, and where the scored rows stand among them."""
    owner = np.repeat(np.arange(len(split.users), dtype=np.int32), np.diff(split.rows.offsets))
    place = locate(Coded(owner, split.users), split.rows.position, base)
    assert (place >= 0).all(), "scores of rows that the dataset does not have, under its own fingerprint"
    return owner, place


def _baselines(run: Store, dataset: Dataset, split: Split, fold: int) -> dict[str, Floats]:
    """Scores of the fold's rows by each baseline, [rows]; computed once for all models of a run."""
    key = f"{FOLDER}/baselines/{dataset.manifest.fingerprint}-{fold}.parquet"
    if not run.exists(key):
        others = dataset.load(set(range(dataset.manifest.folds)) - {fold})
        names = dataset.manifest.numbers
        columns = {}
        with progress("fit baselines", len(BASELINES)) as lines:
            for name, baseline in BASELINES.items():
                columns[name] = baseline(others.rows, split.rows, names)
                lines.advance(note=name)
        run.write_table(key, pa.table(columns))
    table = run.read_table(key)
    return {name: table[name].to_numpy() for name in table.column_names}
