"""(Ray) From chosen settings to members: out-of-fold scores by K fits in parallel, and a model refitted on all folds.

Every finished part is in the store at once, so that an interrupted run loses only the fits that were under way.

Layout below the run's part of the store:
    members/<family>/member.json, oof.parquet, model/          a complete member; member.json is written last
    members/<family>/parts/<digest>/fold-<k>.parquet, refit.json   finished parts of one that is not
"""

from __future__ import annotations

import logging
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from dkt_ray.config import build
from dkt_ray.data.history import ranges
from dkt_ray.ensemble import member
from dkt_ray.errors import DktError, TrainingError
from dkt_ray.features.dataset import Manifest, Split
from dkt_ray.features.encoder import EncoderState
from dkt_ray.log import progress
from dkt_ray.metrics import auc
from dkt_ray.models.catalog import CATALOG
from dkt_ray.storage import Store
from dkt_ray.training.fit import fit as fit_model
from dkt_ray.training.progress import FitResult, TrainingData
from dkt_ray.training.protocol import Scored, evaluation_set, scored_rows
from dkt_ray.training.resources import Resources, claimed

logger = logging.getLogger(__name__)

ALL: Final = -1  # in place of a fold: hold nobody out


@dataclass(frozen=True, eq=False)
class TrainingUsers:
    """All training users of a dataset and the state that their rows go with; lies once in Ray's object store."""

    split: Split
    state: EncoderState

    def holding_out(self, fold: int) -> tuple[TrainingData, Split]:
        """Users outside a fold as training data, those inside as validation data and with their names."""
        inside = self.split.fold == fold
        held_out = select(self.split, inside)
        return TrainingData(select(self.split, ~inside).rows, held_out.rows, self.state), held_out


@dataclass(frozen=True)
class Chosen:
    """What was chosen for a family, to be fitted on every fold."""

    family: str
    settings: Mapping[str, Any]
    iterations: int  # epochs or rounds of every fit: fixed, so that no fold's answers decide when its own fit stops
    trials: int  # from which it was chosen
    digest: str  # of everything that decides the member

    @property
    def parts(self) -> str:
        """Where finished parts are kept."""
        return f"members/{self.family}/parts/{self.digest}"

    def part(self, fold: int) -> str:
        """Key of a fit's result; for `ALL`, of the note that the model is complete."""
        return f"{self.parts}/refit.json" if fold == ALL else f"{self.parts}/fold-{fold}.parquet"


@dataclass(frozen=True)
class Fit:
    """One fit to do."""

    choice: Chosen
    fold: int  # held out; `ALL`: none

    def __str__(self) -> str:
        return f"{self.choice.family} {'on all folds' if self.fold == ALL else f'without fold {self.fold}'}"


def member_key(family: str) -> str:
    """Key of a member's description; its presence means that the member is complete."""
    return f"members/{family}/member.json"


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
) -> None:
    """Fit and store the members that were chosen; parts that an earlier call finished are kept.

    Args:
        choices: one per family.
        resources: what a fit takes, per family.
        users: a `TrainingUsers` in the object store.
        manifest: of their dataset.
        run: the run's part of the store.
        concurrency: fits at the same time; None: as many as the cluster has room for.

    Raises:
        TrainingError: a fit failed; it names the family and the fold.
    """
    for choice in choices:
        if not run.list(choice.parts):
            run.delete_prefix(f"members/{choice.family}")  # of other settings
    left = {choice.family: {ALL, *range(manifest.folds)} for choice in choices}
    fits = [Fit(choice, fold) for fold in (ALL, *range(manifest.folds)) for choice in choices]  # the longest first
    todo = deque(fit for fit in fits if not run.exists(fit.choice.part(fit.fold)))
    running: dict[ray.ObjectRef[None], Fit] = {}
    with progress("fit members", len(fits)) as lines:
        for done in [fit for fit in fits if fit not in todo]:
            lines.advance()
            _strike(left, done, manifest, run)
        while todo or running:
            while todo and (concurrency is None or len(running) < concurrency):
                fit = todo.popleft()
                running[_start(fit, resources, users, run)] = fit
            ref = ray.wait(list(running))[0][0]
            ended = running.pop(ref)
            _check(ref, ended)
            lines.advance(note=str(ended))
            _strike(left, ended, manifest, run)


def _start(
    fit: Fit, resources: Mapping[str, Resources], users: ray.ObjectRef[TrainingUsers], run: Store
) -> ray.ObjectRef[None]:
    # a process that CUDA has once shown no GPU never sees one: where some fits have one, none inherits a process
    once = int(any(share.gpus for share in resources.values()))
    task = ray.remote(max_calls=once)(_refit if fit.fold == ALL else _score_fold)
    share = resources[fit.choice.family]
    named = task.options(num_cpus=share.cpus, num_gpus=share.gpus, name=str(fit))
    return named.remote(fit, users, share, run)


def _check(ref: ray.ObjectRef[None], fit: Fit) -> None:
    try:
        ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, DktError):
            raise TrainingError(f"{fit}: {error.cause}") from error
        raise


def _score_fold(fit: Fit, users: TrainingUsers, resources: Resources, run: Store) -> None:
    """Fit without one fold and store the scores of its users (runs in a Ray worker)."""
    data, held_out = users.holding_out(fit.fold)
    with claimed(resources):
        model = _fit(fit.choice, replace(data, valid=None)).model
        probability = model.score(held_out.rows, held_out.rows)
    scored = scored_rows(held_out.rows, held_out.users, held_out.fold, probability)
    run.write_table(fit.choice.part(fit.fold), scored.to_table())


def _refit(fit: Fit, users: TrainingUsers, resources: Resources, run: Store) -> None:
    """Fit on all folds and store the model (runs in a Ray worker)."""
    with claimed(resources), tempfile.TemporaryDirectory() as folder:
        member.save(_fit(fit.choice, TrainingData(users.split.rows, None, users.state)).model, Path(folder))
        run.upload(Path(folder), f"members/{fit.choice.family}/model")
    run.write_json(fit.choice.part(ALL), {"iterations": fit.choice.iterations})


def _fit(choice: Chosen, data: TrainingData) -> FitResult:
    config = build(CATALOG[choice.family].config, choice.settings)
    return fit_model(choice.family, config, data, iterations=choice.iterations)


def _strike(left: dict[str, set[int]], done: Fit, manifest: Manifest, run: Store) -> None:
    """Cross a fit off; after a family's last, put the member together."""
    choice = done.choice
    left[choice.family].discard(done.fold)
    if left[choice.family]:
        return
    parts = [run.read_table(choice.part(fold)) for fold in range(manifest.folds)]
    oof = pa.concat_tables(parts).sort_by([("user", "ascending"), ("position", "ascending")])
    scored = Scored.from_table(oof, f"out-of-fold scores of {choice.family}")
    kept = scored.headline
    facts = {
        "name": choice.family,
        "family": choice.family,
        "config": dict(choice.settings),
        "best_iteration": choice.iterations,
        "auc": auc(scored.correct[kept], scored.probability[kept]),
        "fingerprint": evaluation_set(manifest, scored).fingerprint,
        "dataset": manifest.fingerprint,
        "trials": choice.trials,
        "digest": choice.digest,
    }
    run.write_table(f"members/{choice.family}/oof.parquet", oof)
    run.write_json(member_key(choice.family), facts)
    run.delete_prefix(choice.parts)
    logger.info("%s: out-of-fold auc %.4f", choice.family, facts["auc"])
