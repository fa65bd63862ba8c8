"""(Ray) `dkt ensemble`: weigh the members of a run by their out-of-fold predictions, and report beside baselines.

Everything is measured on one evaluation set: members, blends, baselines and, for simulated data, the true
probabilities. A blend's own figures are nested: the rows of each fold are weighed by weights that were fitted on the
other folds.

Legend: N rows, K members.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import ray
from pydantic import Field

from dkt_ray import __version__
from dkt_ray.config import Config
from dkt_ray.data.history import Coded, Histories
from dkt_ray.data.simulation.filter import PARTICLES
from dkt_ray.ensemble.blend import blend, equal, fit_simplex, fixed, nested_blend
from dkt_ray.errors import ConfigError, NotFoundError
from dkt_ray.features.dataset import Dataset, Manifest
from dkt_ray.log import progress
from dkt_ray.metrics import METRIC_VERSION, first_attempts
from dkt_ray.pipelines import figures
from dkt_ray.pipelines.figures import Answers, Contender, Heading, Settings, make_report
from dkt_ray.pipelines.report import REPORT, outcome, read_report, text_table, write_report
from dkt_ray.pipelines.yardstick import Simulator, oracle, yardstick
from dkt_ray.storage import Store, open_store
from dkt_ray.training.baselines import BASELINES, out_of_fold
from dkt_ray.training.protocol import Scored, align_members, evaluation_set, locate
from dkt_ray.training.weights import search_weights

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Method = Literal["simplex", "tuned", "fixed"]

BLEND: Final = "blend.json"
HOW: Final = (
    "Every figure is out of fold: a student's answers were scored by models that were fitted on other students; fitted "
    "weights were nested in the same folds."
)
HEADLINES: Final = ("auc", "auc_capped", "accuracy", "log_loss", "brier", "ece")  # kept with the weights


class EnsembleConfig(Config):
    """Settings of `dkt ensemble`."""

    store: str = "data/store"
    """A folder or s3://bucket/prefix."""
    dataset: str = "default"
    """The dataset that the run was tuned on."""
    run: str = "default"
    """The run whose members are weighed."""
    members: tuple[str, ...] | None = None
    """Families to weigh; unset: all that the run has."""
    method: Method = "simplex"
    """simplex: lowest log-loss; tuned: highest AUROC among Ray Tune's trials; fixed: the ratio below."""
    ratio: dict[str, float] | None = None
    """Fixed weights, e.g. {bert: 8, saint: 1, lightgbm: 0.5, lstm_attention: 0.5}; unset: equal ones."""
    tune_trials: int = Field(default=12, ge=0)
    """Trials of the search by Ray Tune; 0: no search."""
    truth: str | None = None
    """The simulator's truth.parquet (true probabilities): the oracle of the report."""
    yardstick: int = Field(default=0, ge=0)
    """With truth: students whose answers a filter that knows the simulator foresees; 300 say enough, 0: none."""
    particles: int = Field(default=PARTICLES, ge=1)
    """Of that filter; twice as many should change its AUROC by less than 0.001."""
    samples: int = Field(default=200, ge=1)
    """Bootstrap resamples of the users."""
    last_answers: bool = False
    """Also report the AUROC of last answers; only for competition-type logs, elsewhere an artefact."""
    seed: int = 0
    """Seed of the bootstrap and of the search."""


class Weighing(NamedTuple):
    """One way of weighing the members."""

    weights: Floats  # [K], fitted on all rows
    blended: Floats  # [N], weighed without the row's own fold where weights are fitted


def run(config: EnsembleConfig) -> dict[str, Any]:
    """Fit the weights of a run's members, compare, and write blend.json, report.json and report.html.

    Returns:
        auc (by family, `ensemble`, the other ways of weighing, baselines, `oracle` if known), auc_interval (of the
        ensemble), weights, fingerprint (of the evaluation set), report (where the page is), reused.

    Raises:
        NotFoundError: no such dataset, or a member is not there.
        ConfigError: members that were not scored on the same rows, a constant one, or a ratio that does not fit.
    """
    if config.method == "tuned" and not config.tune_trials:
        raise ConfigError("method=tuned needs trials; set tune_trials to 1 or more, or choose another method")
    store = open_store(config.store)
    dataset = Dataset.open(store, config.dataset)
    folder = store.child(f"runs/{config.run}")
    facts = read_facts(folder, config.members)
    digest = _digest(config, dataset.manifest, facts)
    report = read_report(folder, REPORT) if folder.exists(BLEND) else None
    reused = report is not None and report["digest"] == digest
    if report is None or not reused:
        report = _measure(config, dataset, folder, facts) | {"digest": digest}
        _write_weights(report, folder)
    report["ledger"] = figures.ledger(store)
    write_report(report, folder, REPORT)
    logger.info("evaluation set %s\n%s", report["fingerprint"], text_table(report))
    return outcome(report, folder, REPORT) | {"reused": reused}


def read_facts(folder: Store, wanted: tuple[str, ...] | None) -> dict[str, dict[str, Any]]:
    """member.json of each member of a run, by family.

    Raises:
        NotFoundError: the run has no members, or not the wanted ones.
    """
    keys = [key.split("/") for key in folder.list("members")]
    there = [parts[1] for parts in keys if parts[2:] == ["member.json"]]
    missing = [name for name in wanted or () if name not in there]
    if missing or not there:
        raise NotFoundError(
            f"no member {', '.join(missing) or 'at all'} in {folder.url} (there: {', '.join(there) or 'none'}); "
            "make members with dkt tune"
        )
    return {name: folder.read_json(f"members/{name}/member.json") for name in wanted or there}


def _measure(
    config: EnsembleConfig, dataset: Dataset, folder: Store, facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Everything that the report holds."""
    scored = {
        name: Scored.from_table(folder.read_table(f"members/{name}/oof.parquet"), f"member {name}") for name in facts
    }
    simulator = Simulator.of(config.truth, config.yardstick, config.particles)
    if simulator is not None:
        simulator.check(dataset.manifest)
    base, columns = align_members(scored)
    evaluation = evaluation_set(dataset.manifest, base)
    figures.require_same({name: str(fact["fingerprint"]) for name, fact in facts.items()}, evaluation)
    logger.info("evaluation set %s: %d rows, members %s", evaluation.fingerprint, evaluation.rows, ", ".join(scored))
    histories, answers, baselines = _dataset_columns(dataset, base)
    ways = weigh(config, list(scored), columns, base)
    contenders = {_named(way, config.method): Contender("ensemble", found.blended) for way, found in ways.items()}
    contenders |= {name: Contender("member", member.probability) for name, member in scored.items()}
    contenders |= {name: Contender("baseline", ray.get(column)) for name, column in baselines.items()}
    contenders |= oracle(simulator, dataset.manifest, base)
    how = Settings(config.samples, config.seed, config.last_answers)
    report = make_report(
        Heading(f"Out-of-fold report of {config.run}", HOW, config.dataset, config.run),
        evaluation,
        answers,
        contenders,
        {way: dict(zip(scored, found.weights.tolist(), strict=True)) for way, found in ways.items()},
        how,
        _measure_in_parallel,
    )
    return report | yardstick(simulator, histories, base, answers, contenders, how)


def weigh(config: EnsembleConfig, members: list[str], p: Floats, base: Scored) -> dict[Method, Weighing]:
    """Every way of weighing the members, the chosen one first.

    Args:
        members: names of the columns of `p`.
        p: [N, K] out-of-fold probabilities.
        base: their rows.
    """
    if len(members) == 1:
        return {config.method: Weighing(equal(1), p[:, 0])}
    ratio = equal(len(members)) if config.ratio is None else fixed(config.ratio, members)
    ways: dict[Method, Weighing] = {
        "simplex": Weighing(fit_simplex(p, base.correct), nested_blend(p, base.correct, base.fold)),
        "fixed": Weighing(ratio, blend(p, ratio)),
    }
    if config.tune_trials:
        ways["tuned"] = Weighing(*search_weights(p, base.correct, base.fold, config.tune_trials, config.seed))
    return {config.method: ways.pop(config.method), **ways}


def _named(way: Method, chosen: Method) -> str:
    return "ensemble" if way == chosen else f"ensemble_{way}"


def _dataset_columns(dataset: Dataset, base: Scored) -> tuple[Histories, Answers, dict[str, ray.ObjectRef[Floats]]]:
    """The histories, the scored rows, and each baseline's scores of them (under way in Ray)."""
    split = dataset.load()
    owner = np.repeat(np.arange(len(split.users), dtype=np.int32), np.diff(split.rows.offsets))
    place = locate(Coded(owner, split.users), split.rows.position, base)
    if (place < 0).any():
        raise ConfigError(
            f"{int((place < 0).sum())} of {base.rows} rows of the members are not in dataset {dataset.name!r}; "
            "run dkt tune again"
        )
    histories, _ = dataset.load_histories()
    first = first_attempts(owner, histories.question.codes)[place]
    rows = ray.put((split.rows, split.fold))
    score = ray.remote(_baseline)
    names = tuple(dataset.manifest.numbers)
    baselines = {name: score.remote(name, rows, names, place) for name in BASELINES}
    return histories, Answers.of(base, first), baselines


def _baseline(name: str, split: tuple[Any, Any], names: tuple[str, ...], place: npt.NDArray[np.int64]) -> Floats:
    """Out-of-fold scores of one baseline at the given rows (runs in a Ray worker)."""
    rows, fold = split
    return out_of_fold(BASELINES[name], rows, fold, names)[place]


def _measure_in_parallel(
    answers: Answers, contenders: Mapping[str, Contender], how: Settings
) -> dict[str, dict[str, Any]]:
    """The figures of every contender, a Ray task each."""
    measure, shared = ray.remote(figures.model_figures), ray.put(answers)
    waiting = {measure.remote(shared, contender, how): name for name, contender in contenders.items()}
    models = {}
    with progress("measure models", len(waiting)) as lines:
        left = list(waiting)
        while left:
            (done,), left = ray.wait(left)
            models[waiting[done]] = ray.get(done)
            lines.advance(note=waiting[done])
    return {name: models[name] for name in contenders}


def _digest(config: EnsembleConfig, manifest: Manifest, facts: Mapping[str, Any]) -> str:
    """Digest of everything that the report depends on."""
    parts = {
        "config": config.model_dump(mode="json", exclude={"store", "truth"}),
        "dataset": manifest.fingerprint,
        "members": facts,
        "truth": None if config.truth is None else figures.truth_version(config.truth),
        "versions": [__version__, METRIC_VERSION],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _write_weights(report: Mapping[str, Any], folder: Store) -> None:
    ensemble = report["models"]["ensemble"]
    blend_json = {
        "method": report["method"],
        "weights": report["weights"][report["method"]],
        "calibrator": None,
        "metrics": {name: ensemble[name] for name in HEADLINES},
        "fingerprint": report["fingerprint"],
    }
    folder.write_json(BLEND, blend_json)
