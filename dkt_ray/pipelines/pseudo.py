"""Pseudo-labels in `dkt train`: where their rounds are kept, and whether they helped.

Beside the model: pseudo.json (every round's guesses and validation AUROC, and the paired difference of the last round
and the first fit, which has no guesses), pseudo.svg (the AUROC of every round), and pseudo/<round>/ (scores.parquet and
epochs.jsonl of every round but the last, which is the model itself).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np

from dkt_ray import metrics
from dkt_ray.data.history import Histories, graded
from dkt_ray.errors import ConfigError
from dkt_ray.features.dataset import Dataset
from dkt_ray.pipelines.charts import Point, label_axis, lines, range_axis, standalone
from dkt_ray.pipelines.trained import SCORES
from dkt_ray.storage import Store
from dkt_ray.training.protocol import Scored
from dkt_ray.training.pseudo import Guesses, Pool, Source

logger = logging.getLogger(__name__)

FACTS: Final = "pseudo.json"
PLOT: Final = "pseudo.svg"
BEFORE: Final = "without_pseudo_labels"  # the first fit, beside the model in its report


def load_pool(dataset: Dataset, folds: Collection[int], of: Source) -> Pool:
    """The users who train and the unknown answers that are to be guessed.

    Raises:
        ConfigError: no answer is unknown.
    """
    pool = Pool.of(*dataset.load_histories(folds), _strangers(dataset) if of == "test" else None)
    if graded(pool.histories.correct).all():
        remedy = "hold out test users" if of == "test" else "set pseudo.of=test to guess answers of the test users"
        raise ConfigError(
            f"pseudo.of is {of}, and dataset {dataset.name!r} has no such answer for the users who train; {remedy}, or "
            "set pseudo.rounds=0"
        )
    return pool


def _strangers(dataset: Dataset) -> Histories:
    """What the test users were asked who are test users from their first answer on: others also train or validate."""
    asked, (training, _) = dataset.test_inputs(), dataset.load_histories()
    return asked.select(np.flatnonzero(~np.isin(asked.users.astype(str), training.users.astype(str))))


def folder_of(folder: Store, number: int, rounds: int) -> Store:
    """Where a round's fit is kept: the last one is the model."""
    return folder if number == rounds else folder.child(f"pseudo/{number}")


def peers(folder: Store, rounds: int) -> dict[str, Scored]:
    """The scores of the first fit, to stand beside the model's in its report."""
    return {BEFORE: _scored(folder, 0, rounds)} if rounds else {}


def conclude(folder: Store, guesses: Sequence[Guesses], samples: int) -> dict[str, Any]:
    """Write pseudo.json and pseudo.svg once the last round is scored.

    Args:
        folder: of the model.
        guesses: that the rounds after the first fit were taught.
        samples: bootstrap resamples of the users.
    """
    rounds = len(guesses)
    first, last = _scored(folder, 0, rounds), _scored(folder, rounds, rounds)
    kept = first.headline
    y, user = first.correct[kept], first.user.codes[kept]
    found = metrics.paired_difference(y, last.probability[kept], first.probability[kept], user, samples)
    facts: dict[str, Any] = {
        "rounds": [_figures(number, _scored(folder, number, rounds), samples) for number in range(rounds + 1)],
        "difference": found,
        "verdict": _verdict(found),
    }
    for line, made in zip(facts["rounds"][1:], guesses, strict=True):
        line.update(unknown=made.unknown, labels=made.taken, right=made.right)
    folder.write_json(FACTS, facts)
    folder.write(PLOT, _plot(facts["rounds"]).encode())
    logger.info("pseudo-labels after %d rounds: %s, AUROC difference %s", rounds, facts["verdict"], found)
    return facts


def _figures(number: int, scored: Scored, samples: int) -> dict[str, Any]:
    kept = scored.headline
    y, p, user = scored.correct[kept], scored.probability[kept], scored.user.codes[kept]
    low, high = metrics.bootstrap_auc(y, p, user, samples) or (None, None)
    figures = {"round": number, "auc": metrics.auc(y, p), "low": low, "high": high, "log_loss": metrics.log_loss(y, p)}
    logger.info("pseudo-labels, round %d: AUROC %s, log-loss %s", number, figures["auc"], figures["log_loss"])
    return figures


def _verdict(difference: metrics.Estimate) -> str:
    low, high = difference["low"], difference["high"]
    if low is None or high is None or low <= 0 <= high:
        return "no difference shown"
    return "better" if low > 0 else "worse"


def _plot(rounds: Sequence[Mapping[str, Any]]) -> str:
    known = [line for line in rounds if line["auc"] is not None]
    points = [Point(line["round"], line["auc"], line["low"], line["high"]) for line in known]
    ends = [end for point in points for end in (point.y, point.low, point.high) if end is not None]
    axes = label_axis("round of pseudo-labels", [str(line["round"]) for line in rounds]), range_axis("AUROC", ends)
    return standalone(lines({"validation users": points}, *axes))


def _scored(folder: Store, number: int, rounds: int) -> Scored:
    table = folder_of(folder, number, rounds).read_table(SCORES)
    return Scored.from_table(table, f"round {number} of pseudo-labels")
