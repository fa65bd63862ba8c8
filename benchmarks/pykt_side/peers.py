"""Train pyKT's models one after the other, score the held-out users with each, and print one line of JSON per step.

Everything is kept in one folder: the files of the data, a checkpoint per model, its scores. A second call with the same
folder continues: with a longer limit, a model that its limit ended trains on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch

from benchmarks.pykt_side import sequences
from benchmarks.pykt_side.check import compare
from benchmarks.pykt_side.layout import MAXLEN, History, histories
from benchmarks.pykt_side.score import scores
from benchmarks.pykt_side.toolkit import CONFIG, SETTINGS, loaders
from benchmarks.pykt_side.train import Training
from benchmarks.turns import say

CHECKED: Final = (40, 2)  # users with at most 200 rows and with more, whose scores are compared with pyKT's own
CHECKED_ROWS: Final = 300


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score, check."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    data = options.folder / "data"
    if not (data / CONFIG).exists():
        say(**sequences.write(options.data, options.split, data, options.joined)._asdict())
    for name in options.models:
        say(**one(name, data, options))


def one(name: str, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train, score and check one model."""
    training = Training(name, data, options.folder / name, options.seed)
    both = loaders(name, data, SETTINGS[name].batch)
    course = training.run(both, 60 * options.minutes)
    started = time.process_time()
    users = histories(pd.read_parquet(data / sequences.HISTORIES))
    found = scores(name, training.model, users, options.stride)
    found.assign(fold=sequences.SCORED).to_parquet(options.folder / f"{name}.parquet", index=False)
    return {
        "model": name,
        "ended": course.ended,
        "epochs": round(course.epoch + course.steps / len(both.train), 2),
        "minutes": round(course.seconds / 60, 1),
        "epoch_seconds": round(course.epoch_seconds, 1),
        "best_epoch": round(course.best_epoch, 2),
        "valid_auc_rows": round(course.best_auc, 5),
        "scored": len(found),
        "scoring_seconds": round((time.process_time() - started) / options.threads, 1),
        "check": compare(name, training.model, _some(users), options.stride)._asdict(),
    }


def _some(users: Sequence[History]) -> list[History]:
    """A few users whose histories are one window, and a few with longer ones."""
    short = [user for user in users if 2 <= len(user.first) <= MAXLEN]
    long = [user for user in users if MAXLEN < len(user.first) <= CHECKED_ROWS]
    return [*short[: CHECKED[0]], *long[: CHECKED[1]]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CSV of answers, six columns")
    parser.add_argument("--split", type=Path, required=True, help="CSV userID,split with fold1 to fold5")
    parser.add_argument("--folder", type=Path, required=True, help="for everything that is kept")
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(SETTINGS), help=",".join(SETTINGS))
    parser.add_argument("--minutes", type=float, default=60, help="of processor time per model and thread")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--joined", action="store_true", help="one row per question: its concepts are one concept")
    parser.add_argument("--stride", type=int, default=50, help="rows of targets per window of a long history")
    return parser


if __name__ == "__main__":
    main()
