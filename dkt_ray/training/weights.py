"""(Ray) Ensemble weights by Ray Tune: trials in parallel propose weights, the out-of-fold AUROC decides.

The direct fit (`ensemble.blend.fit_simplex`) has the log-loss as its aim; this one has the AUROC, which is not convex.

Legend: N rows, K members, F folds, T trials.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import optuna
from ray import tune
from ray.tune.result import DONE
from ray.tune.search.optuna import OptunaSearch
from scipy.special import softmax

from dkt_ray.data.history import Int8
from dkt_ray.ensemble.blend import Floats, blend
from dkt_ray.metrics import auc
from dkt_ray.training.resources import environment
from dkt_ray.training.tuning import ENVIRONMENT

logger = logging.getLogger(__name__)

_SPREAD: Final = 4.0  # proposed log-weights lie between -_SPREAD and _SPREAD
_WITHOUT: Final = "without"


def search_weights(p: Floats, y: Int8, fold: Int8, trials: int, seed: int) -> tuple[Floats, Floats]:
    """Search weights on the simplex for the highest AUROC of the blend; the first trial is the plain mean.

    Args:
        p: [N, K] out-of-fold probabilities.
        y: [N] answers, 1 or 0.
        fold: [N] fold of each row.
        trials: T, at least 1.
        seed: of the search.

    Returns:
        [K] the best weights, and [N] the blend in which the rows of each fold are weighed by the trial that is best on
        the other folds.
    """
    members = p.shape[1]
    found = _run_trials({"p": p, "y": y, "fold": fold}, members, trials, seed)
    weights = np.array([_weights(result["config"], members) for result in found])  # [T, K]
    best = weights[np.argmax([result["auc"] for result in found])]
    blended = np.empty(len(p))
    for column, held_out in enumerate(np.unique(fold)):
        rows = fold == held_out
        chosen = np.argmax([result[_WITHOUT][column] for result in found])
        blended[rows] = blend(p[rows], weights[chosen])
    return best, blended


def _run_trials(data: dict[str, Any], members: int, trials: int, seed: int) -> list[dict[str, Any]]:
    """The results of all trials, in the order in which they were proposed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {_name(k): tune.uniform(-_SPREAD, _SPREAD) for k in range(members)}
    plain_mean = {_name(k): 0.0 for k in range(members)}
    with tempfile.TemporaryDirectory(prefix="dkt-weights-") as folder, environment(ENVIRONMENT):
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(WeightsTrial, **data), {"cpu": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="auc",
                mode="max",
                num_samples=trials,
                search_alg=OptunaSearch(points_to_evaluate=[plain_mean], seed=seed),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                callbacks=[_Lines(trials)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # there is nothing to keep
            ),
        ).fit()
    found = [results[trial] for trial in range(len(results))]
    return [{**(result.metrics or {}), "config": result.config} for result in found]


class WeightsTrial(tune.Trainable):
    """One proposal: its AUROC on all rows, and without each fold."""

    def setup(self, config: dict[str, Any], **data: Any) -> None:
        """Keep the shared out-of-fold scores."""
        self._data = data

    def step(self) -> dict[str, Any]:
        """Score the proposal; there is nothing to iterate."""
        p, y, fold = self._data["p"], self._data["y"], self._data["fold"]
        blended = blend(p, _weights(self.config, p.shape[1]))
        without = [_auc(y[fold != k], blended[fold != k]) for k in np.unique(fold)]
        return {"auc": _auc(y, blended), _WITHOUT: without, DONE: True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next proposal in the same process."""
        self.config = new_config
        return True


class _Lines(tune.Callback):
    """Progress through logging."""

    def __init__(self, trials: int) -> None:
        self._total, self._done, self._best = trials, 0, 0.0

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """Count a trial."""
        self._done += 1
        self._best = max(self._best, trial.last_result["auc"])
        logger.info("search weights %d/%d, best auc %.4f", self._done, self._total, self._best)


def _auc(y: Int8, p: Floats) -> float:
    """The AUROC; that of guessing where only one kind of answer is there."""
    found = auc(y, p)
    return 0.5 if found is None else found


def _name(member: int) -> str:
    return f"log_weight_{member}"


def _weights(config: dict[str, float], members: int) -> Floats:
    return softmax([config[_name(k)] for k in range(members)])
