"""(Ray) From chosen settings to members: out-of-fold scores by fits on every fold, and the model that is served.

Every finished part is in the store at once, so that an interrupted run loses only the fits that were under way.

Layout below the run's part of the store:
    members/<name>/member.json, oof.parquet, model/      a complete member; member.json is written last
    members/<name>/parts/<digest>/fold-<k>-<seed>.parquet, shift-<k>-<seed>.parquet, refit-<seed>.json, iterations.json
                                                         finished parts of one that is not
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from dkt_ray.config import build
from dkt_ray.data.history import Coded, Int32, ranges
from dkt_ray.ensemble import member
from dkt_ray.ensemble.families import FAMILIES
from dkt_ray.ensemble.member import Stacked
from dkt_ray.ensemble.shift import Shifted
from dkt_ray.errors import DktError, TrainingError
from dkt_ray.features.dataset import Manifest, Split
from dkt_ray.features.encoder import EncoderState
from dkt_ray.log import progress
from dkt_ray.metrics import auc
from dkt_ray.models.base import Model, Probabilities
from dkt_ray.models.lgbm import LightGBM
from dkt_ray.storage import Store
from dkt_ray.training.fit import fit as fit_model
from dkt_ray.training.progress import FitResult, TrainingData
from dkt_ray.training.protocol import OOF_SCHEMA, Scored, evaluation_set, locate, oof_key, scored_rows
from dkt_ray.training.resources import Resources, claimed
from dkt_ray.training.selection import Chosen, Fit, fits_of, startable

logger = logging.getLogger(__name__)

COST: Final = b"score_us"  # in the metadata of a part: processor microseconds per scored row
FINGERPRINT: Final = b"fingerprint"  # in those of an out-of-fold table: of its evaluation set


@dataclass(frozen=True, eq=False)
class TrainingUsers:
    """All training users of a dataset and the state that their rows go with; lies once in Ray's object store."""

    split: Split
    state: EncoderState
    further: tuple[str, ...] = ()  # numeric columns behind the encoder's

    @property
    def everyone(self) -> TrainingData:
        """All users as training data."""
        return TrainingData(self.split.rows, None, self.state, self.further)

    def holding_out(self, fold: int) -> tuple[TrainingData, Split]:
        """Users outside a fold as training data, those inside as validation data and with their names."""
        inside = self.split.fold == fold
        held_out = select(self.split, inside)
        return replace(self.everyone, train=select(self.split, ~inside).rows, valid=held_out.rows), held_out

    def reading(self, scores: Mapping[str, Scored]) -> TrainingUsers:
        """The same users, whose rows also have the log-odds of members' out-of-fold scores; nan where none is known."""
        rows, users = self.split.rows, self.split.users
        owner = np.repeat(np.arange(len(users), dtype=np.int32), np.diff(rows.offsets))
        columns = [_spread(scored, Coded(owner, users), rows.position) for scored in scores.values()]
        split = self.split._replace(rows=member.with_log_odds(rows, columns))
        return replace(self, split=split, further=member.columns_of(tuple(scores)))


def member_key(name: str) -> str:
    """Key of a member's description; its presence means that the member is complete."""
    return f"members/{name}/member.json"


def is_complete(choice: Chosen, run: Store) -> bool:
    """Whether the run has the member, of these settings and data."""
    key = member_key(choice.name)
    return run.exists(key) and run.read_json(key)["digest"] == choice.digest


def select(split: Split, chosen: npt.NDArray[np.bool_]) -> Split:
    """The users where `chosen`, [U], holds."""
    users, offsets = np.flatnonzero(chosen), split.rows.offsets
    rows = split.rows.take(*ranges(offsets[users], offsets[users + 1]))
    return Split(rows, split.users[users], split.fold[users])


def fit_members(
    choices: Sequence[Chosen],
    resources: Mapping[str, Resources],
    users: ray.ObjectRef[TrainingUsers],
    manifest: Manifest,
    run: Store,
    concurrency: int | None = None,
    parallel: bool = True,
) -> None:
    """Fit and store the members that were chosen; parts that an earlier call finished are kept.

    Args:
        choices: of distinct names.
        resources: what a fit takes, per family.
        users: a `TrainingUsers` in the object store.
        manifest: of their dataset.
        run: the run's part of the store.
        concurrency: fits at the same time; None: as many as the cluster has room for.
        parallel: fit the folds of a member at the same time; the scores are the same in turn.

    Raises:
        TrainingError: a fit failed; it names the member and the fold.
    """
    for choice in choices:
        if not run.list(choice.parts):
            for name in choice.names:
                run.delete_prefix(f"members/{name}")  # of other settings
    fits = fits_of(choices, manifest.folds)
    todo = [fit for fit in fits if not run.exists(fit.key)]
    left = Counter(fit.choice.name for fit in todo)
    running: dict[ray.ObjectRef[None], Fit] = {}
    with progress("fit members", len(fits)) as lines:
        for _ in range(len(fits) - len(todo)):
            lines.advance()
        for choice in choices:
            if not left[choice.name]:
                _put_together(choice, manifest, run)
        while todo or running:
            while (concurrency is None or len(running) < concurrency) and (
                fit := startable(todo, running.values(), parallel)
            ):
                todo.remove(fit)
                running[_start(fit, resources, users, run)] = fit
            ref = ray.wait(list(running))[0][0]
            ended = running.pop(ref)
            _check(ref, ended)
            lines.advance(note=str(ended))
            left[ended.choice.name] -= 1
            if not left[ended.choice.name]:
                _put_together(ended.choice, manifest, run)


def _start(
    fit: Fit, resources: Mapping[str, Resources], users: ray.ObjectRef[TrainingUsers], run: Store
) -> ray.ObjectRef[None]:
    # a process that CUDA has once shown no GPU never sees one: where some fits have one, none inherits a process
    once = int(any(share.gpus for share in resources.values()))
    share = resources[fit.choice.family]
    task = ray.remote(max_calls=once)(TASKS[fit.kind])
    named = task.options(num_cpus=share.cpus, num_gpus=share.gpus, name=str(fit))
    return named.remote(fit, users, share, run)


def _check(ref: ray.ObjectRef[None], fit: Fit) -> None:
    try:
        ray.get(ref)
    except RayTaskError as error:
        raise TrainingError(f"{fit}: {_reason(error.cause)}") from error
    except RayError as error:  # the worker died, e.g. for want of memory
        raise TrainingError(f"{fit}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, DktError) else f"{type(error).__name__}: {error}"


def _find_iterations(fit: Fit, users: TrainingUsers, resources: Resources, run: Store) -> None:
    """Fit until the users of one fold stop it, and store after how many iterations (runs in a Ray worker)."""
    data, _ = users.holding_out(fit.fold)
    with claimed(resources):
        found = _fitted(fit, data, None)
    run.write_json(fit.key, {"iterations": found.best_iteration})


def _score_fold(fit: Fit, users: TrainingUsers, resources: Resources, run: Store) -> None:
    """Fit without one fold and store the scores of its users (runs in a Ray worker)."""
    data, held_out = users.holding_out(fit.fold)
    with claimed(resources):
        model = _fitted(fit, replace(data, valid=None), iterations_of(fit.choice, run)).model
        tables = [_scores(form, held_out) for form in _forms(model, fit.choice)]
    _store_model(model, fit, run)
    if len(tables) > 1:
        run.write_table(fit.shift_key, tables[1])
    run.write_table(fit.key, tables[0])


def _forms(model: Model, choice: Chosen) -> list[Model]:
    """The fitted model, and its shift form where it is wanted, in the order of the member's names."""
    return [model] if choice.shifts == 1 else [model, Shifted.of(model, choice.shifts)]


def _scores(model: Model, held_out: Split) -> pa.Table:
    """The scores of users whom the model was not fitted on, with what they cost."""
    started = time.process_time()
    probability = model.score(held_out.rows, held_out.rows)
    cost = 1e6 * (time.process_time() - started) / max(held_out.rows.rows, 1)
    table = scored_rows(held_out.rows, held_out.users, held_out.fold, probability).to_table()
    return table.replace_schema_metadata({COST: repr(cost).encode()})


def _refit(fit: Fit, users: TrainingUsers, resources: Resources, run: Store) -> None:
    """Fit on all folds and store the model (runs in a Ray worker)."""
    iterations = iterations_of(fit.choice, run)
    with claimed(resources):
        model = _fitted(fit, users.everyone, iterations).model
    _store_model(model, fit, run)
    run.write_json(fit.key, {"iterations": iterations})


TASKS: Final[Mapping[str, Callable[[Fit, TrainingUsers, Resources, Store], None]]] = {
    "iterations": _find_iterations,
    "fold": _score_fold,
    "refit": _refit,
}


def iterations_of(choice: Chosen, run: Store) -> int:
    """Epochs or rounds of every fit of a member: those of its trial, or those that a fit of its own has found."""
    return choice.iterations or int(run.read_json(Fit(choice, "iterations").key)["iterations"])


def _fitted(fit: Fit, data: TrainingData, iterations: int | None) -> FitResult:
    family = fit.choice.family
    return fit_model(family, build(FAMILIES[family].config, fit.settings), data, iterations=iterations)


def _spread(scored: Scored, user: Coded, position: Int32) -> Probabilities:
    """The probability of each of a dataset's rows; nan for those that were not scored."""
    place = locate(user, position, scored)
    probability = np.full(len(position), np.nan)
    probability[place[place >= 0]] = scored.probability[place >= 0]
    return probability


def _stacked(booster: Model, names: Sequence[str], run: Store) -> Stacked:
    """A booster together with the run's members that it reads."""
    assert isinstance(booster, LightGBM)
    with tempfile.TemporaryDirectory() as local:
        folders = [Path(local) / name for name in names]
        for name, folder in zip(names, folders, strict=True):
            run.download(f"members/{name}/model", folder)
        return Stacked(tuple(names), tuple(member.load(folder) for folder in folders), booster)


def _store_model(model: Model, fit: Fit, run: Store) -> None:
    if fit.model is not None and fit.choice.reads:
        model = _stacked(model, list(fit.choice.reads), run)
    for name, form in zip(fit.choice.names, _forms(model, fit.choice), strict=True):
        if (place := fit.model_of(name)) is not None:
            with tempfile.TemporaryDirectory() as folder:
                member.save(form, Path(folder))
                run.upload(Path(folder), place)


def _put_together(choice: Chosen, manifest: Manifest, run: Store) -> None:
    """Make a member, and before it its shift form, of the parts."""
    for name in reversed(choice.names):
        _describe(name, choice, manifest, run)
    run.delete_prefix(choice.parts)


def _describe(name: str, choice: Chosen, manifest: Manifest, run: Store) -> None:
    """Write a member's out-of-fold scores and its description."""
    fits = fits_of([choice], manifest.folds)
    models = sum(fit.model_of(name) is not None for fit in fits)
    if models > 1:
        run.write_json(f"members/{name}/model/{member.FORM}", member.mean_form(models))
    own = name == choice.name
    scores = [(fit, fit.key if own else fit.shift_key) for fit in fits if fit.kind == "fold"]
    parts = {(fit.fold, fit.number): run.read_table(key) for fit, key in scores}
    each = [_mean_of([parts[fold, number] for number in range(choice.seeds)]) for fold in range(manifest.folds)]
    oof = pa.concat_tables(each).sort_by([("user", "ascending"), ("position", "ascending")])
    scored = Scored.from_table(oof, f"out-of-fold scores of {name}")
    kept = scored.headline
    fingerprint = evaluation_set(manifest, scored).fingerprint
    costs = [float(part.schema.metadata[COST]) for part in parts.values()]
    facts = {
        "name": name,
        "family": choice.family,
        "config": dict(choice.settings),
        "seeds": choice.seeds,
        "served": choice.served,
        "best_iteration": iterations_of(choice, run),
        "score_us": round(float(np.mean(costs)) * models + _score_us(choice.reads, run), 3),
        "auc": auc(scored.correct[kept], scored.probability[kept]),
        "fingerprint": fingerprint,
        "dataset": manifest.fingerprint,
        "digest": choice.digest,
    }
    run.write_table(oof_key(name), oof.replace_schema_metadata({FINGERPRINT: fingerprint.encode()}))
    run.write_json(member_key(name), facts | choice.notes_of(name))
    logger.info("%s: out-of-fold auc %.4f", name, facts["auc"])


def _score_us(names: Iterable[str], run: Store) -> float:
    """What the members cost per row together, which one that reads them pays again."""
    return sum(float(run.read_json(member_key(name))["score_us"]) for name in names)


def _mean_of(tables: Sequence[pa.Table]) -> pa.Table:
    """The scores of several seeds of one fold as their mean."""
    mean = np.mean([table["probability"].to_numpy() for table in tables], axis=0)
    place = OOF_SCHEMA.get_field_index("probability")
    return tables[0].replace_schema_metadata(None).set_column(place, OOF_SCHEMA.field(place), pa.array(mean))
