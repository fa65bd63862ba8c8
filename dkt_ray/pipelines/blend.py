"""(Ray) `dkt ensemble`: combine the members of a run by their out-of-fold predictions, and report beside baselines.

Everything is measured on one evaluation set: members, every way of combining them, baselines and, for simulated data,
the true probabilities. A combination's own figures are nested: the rows of each fold are combined by what was fitted on
the other folds.

Legend: N rows, K members.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import ray
from pydantic import Field

from dkt_ray import __version__, metrics
from dkt_ray.data.history import Coded, Histories, Int32
from dkt_ray.data.simulation.filter import PARTICLES
from dkt_ray.ensemble.chain import Chain, shares_of
from dkt_ray.ensemble.choice import Members
from dkt_ray.errors import ConfigError
from dkt_ray.features.dataset import Dataset, Manifest
from dkt_ray.metrics import METRIC_VERSION, first_attempts
from dkt_ray.pipelines import figures
from dkt_ray.pipelines.combine import CombineConfig, Combined, combine
from dkt_ray.pipelines.figures import Answers, Contender, Heading, Settings, make_report
from dkt_ray.pipelines.measuring import begin_measuring, measure_in_parallel, member_contenders, way_contenders
from dkt_ray.pipelines.report import REPORT, outcome, read_report, text_table, write_report
from dkt_ray.pipelines.stored_chain import BLEND, read_facts, write_chain
from dkt_ray.pipelines.yardstick import Simulator, oracle, yardstick
from dkt_ray.storage import Store, open_store
from dkt_ray.training.baselines import BASELINES, out_of_fold
from dkt_ray.training.protocol import EvaluationSet, Scored, align_members, evaluation_set, locate, oof_key

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
HOW: Final = (
    "Every figure is out of fold: a student's answers were scored by models that were fitted on other students; "
    "weights, stacks and calibrators were nested in the same folds."
)


class EnsembleConfig(CombineConfig):
    """Settings of `dkt ensemble`."""

    store: str = "data/store"
    """A folder or s3://bucket/prefix."""
    dataset: str = "default"
    """The dataset that the run was tuned on."""
    run: str = "default"
    """The run whose members are combined."""
    members: tuple[str, ...] | None = None
    """Members to combine; unset: all that the run has."""
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


def run(config: EnsembleConfig) -> dict[str, Any]:
    """Combine a run's members in every way, compare, and write blend.json, report.json and report.html.

    Returns:
        auc (by member, `ensemble`, the ways of combining, baselines, `oracle` if known), auc_interval (of the
        ensemble), weights, fingerprint (of the evaluation set), report (where the page is), reused.

    Raises:
        NotFoundError: no such dataset, or a member is not there.
        ConfigError: members that were not scored on the same rows, a constant one, or a ratio that does not fit.
    """
    store = open_store(config.store)
    dataset = Dataset.open(store, config.dataset)
    folder = store.child(f"runs/{config.run}")
    facts = read_facts(folder, config.members)
    digest = _digest(config, dataset.manifest, facts)
    report = read_report(folder, REPORT) if folder.exists(BLEND) else None
    reused = report is not None and report["digest"] == digest == folder.read_json(BLEND).get("digest")
    if report is None or not reused:
        report, chain = _measure(config, dataset, folder, facts)
        report["digest"] = digest
        write_chain(report, chain, facts, folder)
    report["ledger"] = figures.ledger(store)
    write_report(report, folder, REPORT)
    logger.info("evaluation set %s\n%s", report["fingerprint"], text_table(report))
    return outcome(report, folder, REPORT) | {"reused": reused}


class _Material(NamedTuple):
    """What is measured."""

    base: Scored
    evaluation: EvaluationSet
    histories: Histories
    answers: Answers
    baselines: dict[str, ray.ObjectRef[Floats]]  # under way
    members: ray.ObjectRef[Members]  # whose scores all processes read in one place


def _measure(
    config: EnsembleConfig, dataset: Dataset, folder: Store, facts: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], Chain]:
    """Everything that the report holds, and what is served."""
    simulator = Simulator.of(config.truth, config.yardstick, config.particles)
    if simulator is not None:
        simulator.check(dataset.manifest)
    base, evaluation, histories, answers, baselines, shared = _material(dataset, folder, facts)
    how, members = Settings(config.samples, config.seed, config.last_answers), ray.get(shared)
    alone = member_contenders(shared, members.names)
    begun = begin_measuring(answers, alone.values(), how)
    combined = combine(config, members)
    contenders = {"ensemble": Contender("ensemble", combined.calibrated)}
    contenders |= way_contenders(combined.ways, shared) | alone
    contenders |= {name: Contender("baseline", ray.get(column)) for name, column in baselines.items()}
    contenders |= oracle(simulator, dataset.manifest, base)
    report = make_report(
        Heading(f"Out-of-fold report of {config.run}", HOW, config.dataset, config.run),
        evaluation,
        answers,
        contenders,
        shares_by_way(combined, members),
        how,
        partial(measure_in_parallel, begun=begun),
    )
    report["ensemble"] = _told(combined, members, answers, facts) | {"drop_below": config.drop_below}
    report |= yardstick(simulator, histories, base, answers, contenders, how)
    return report, combined.chain


def _material(dataset: Dataset, folder: Store, facts: Mapping[str, Mapping[str, Any]]) -> _Material:
    base, p = align_members(
        {name: Scored.from_table(folder.read_table(oof_key(name)), f"member {name}") for name in facts}
    )
    evaluation = evaluation_set(dataset.manifest, base)
    figures.require_same({name: str(fact["fingerprint"]) for name, fact in facts.items()}, evaluation)
    logger.info("evaluation set %s: %d rows, members %s", evaluation.fingerprint, evaluation.rows, ", ".join(facts))
    histories, answers, length, baselines = _dataset_columns(dataset, base)
    members = ray.put(Members(tuple(facts), p, base.correct, length, base.fold, base.user.codes))
    return _Material(base, evaluation, histories, answers, baselines, members)


def shares_by_way(combined: Combined, members: Members) -> dict[str, dict[str, float]]:
    """How much each member counts, by way; what is served first, and 0 for members that were dropped from it."""
    nothing, served = dict.fromkeys(members.names, 0.0), combined.chain
    ways = {name: shares_of(way.combination, members.names) for name, way in combined.ways.items()}
    return {combined.method: nothing | served.shares} | {k: v for k, v in ways.items() if k != combined.method}


def _told(
    combined: Combined, members: Members, answers: Answers, facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What the report says of the ensemble beside its figures."""
    score_us = {name: facts[name].get("score_us") for name in members.names}
    return {
        "method": combined.method,
        "rows": combined.rows,
        "removals": [removal._asdict() for removal in combined.removals],
        "stability": combined.stability,
        "score_us": score_us | _costs(combined, members.names, score_us),
        "calibrator": None if combined.chain.calibrator is None else combined.chain.calibrator.kind,
        "before": _calibration(answers, combined.uncalibrated),
        "after": _calibration(answers, combined.calibrated),
    }


def _costs(combined: Combined, members: Sequence[str], score_us: Mapping[str, float | None]) -> dict[str, float | None]:
    """Processor microseconds of a prediction by the ensemble, and by each way through the members that it needs."""
    needed = {"ensemble": list(combined.chain.members), "ensemble_rank": list(members)}
    for name, way in combined.ways.items():
        counted = shares_of(way.combination, members)
        needed[f"ensemble_{name}"] = [member for member in members if counted[member] > 0]
    paid = {name: [us for member in needs if (us := score_us[member]) is not None] for name, needs in needed.items()}
    return {name: sum(paid[name]) if len(paid[name]) == len(needs) else None for name, needs in needed.items()}


def _calibration(answers: Answers, p: Floats) -> dict[str, Any]:
    y, kept = answers.y[answers.headline], p[answers.headline]
    return {"log_loss": metrics.log_loss(y, kept), "ece": metrics.ece(y, kept), "bins": figures.calibration(y, kept)}


def _dataset_columns(
    dataset: Dataset, base: Scored
) -> tuple[Histories, Answers, Int32, dict[str, ray.ObjectRef[Floats]]]:
    """The histories, the scored rows, how many rows each may read, and each baseline's scores of them (under way)."""
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
    return histories, Answers.of(base, first), split.rows.visible[place], baselines


def _baseline(name: str, split: tuple[Any, Any], names: tuple[str, ...], place: npt.NDArray[np.int64]) -> Floats:
    """Out-of-fold scores of one baseline at the given rows (runs in a Ray worker)."""
    rows, fold = split
    return out_of_fold(BASELINES[name], rows, fold, names)[place]


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
