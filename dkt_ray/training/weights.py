"""(Ray) Ensemble weights by Ray Tune: trials in parallel score drawn weights, the out-of-fold AUROC decides.

The direct fit (`ensemble.blend.fit_simplex`) has the log-loss as its aim; this one has the AUROC, which is not convex.
Weights are drawn at random: no answer leads them, so that the choice among them nests as every other fit does, and the
same seed gives the same weights in whatever order the trials end.

Legend: N rows, K members, T trials.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from ray import tune
from ray.tune.result import DONE
from ray.tune.search.basic_variant import BasicVariantGenerator
from scipy.special import softmax

from dkt_ray.data.history import Int8
from dkt_ray.ensemble.blend import Floats, blend
from dkt_ray.errors import TrainingError
from dkt_ray.ranking import binned_auc
from dkt_ray.training.resources import environment
from dkt_ray.training.tuning import ENVIRONMENT, quiet

logger = logging.getLogger(__name__)

_SPREAD: Final = 2.0  # drawn log-weights lie between -_SPREAD and _SPREAD


def draw_weights(p: Floats, y: Int8, trials: int, seed: int) -> Floats:
    """The weights of all trials on the simplex, [T, K], in the order in which they were drawn.

    Args:
        p: [N, K] out-of-fold probabilities.
        y: [N] answers, 1 or 0.
        trials: T, at least 1; one of them is the plain mean.
        seed: of the draw.

    Raises:
        TrainingError: a trial failed.
    """
    members = p.shape[1]
    space = {_name(k): tune.uniform(-_SPREAD, _SPREAD) for k in range(members)}
    plain_mean = {_name(k): 0.0 for k in range(members)}
    with tempfile.TemporaryDirectory(prefix="dkt-weights-") as folder, environment(ENVIRONMENT), quiet():
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(WeightsTrial, p=p, y=y), {"cpu": 1}),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="auc",
                mode="max",
                num_samples=trials,
                search_alg=BasicVariantGenerator(points_to_evaluate=[plain_mean], random_state=seed),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                callbacks=[_Lines(trials)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # there is nothing to keep
            ),
        ).fit()
    if results.errors:
        raise TrainingError(f"a trial of the weights failed: {results.errors[0]}; run it again, or set tune_trials=0")
    return np.array([_weights(results[trial].config or {}, members) for trial in range(len(results))])


class WeightsTrial(tune.Trainable):
    """One drawn set of weights and its AUROC."""

    def setup(self, config: dict[str, Any], **data: Any) -> None:
        """Keep the shared out-of-fold scores."""
        self._data = data

    def step(self) -> dict[str, Any]:
        """Score the weights; there is nothing to iterate."""
        p, y = self._data["p"], self._data["y"]
        return {"auc": binned_auc(y, blend(p, _weights(self.config, p.shape[1]))), DONE: True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next weights in the same process."""
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


def _name(member: int) -> str:
    return f"log_weight_{member}"


def _weights(config: dict[str, float], members: int) -> Floats:
    return softmax([config[_name(k)] for k in range(members)])
