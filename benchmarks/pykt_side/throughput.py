"""pyKT's half of `train_throughput.py`: one epoch of its own loader and training step for every line on standard input.

Every question counts once an epoch, however many rows (concepts) it is; padding does not count.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch

from benchmarks.pykt_side.layout import MAXLEN
from benchmarks.pykt_side.sequences import TRAIN_FILE
from benchmarks.pykt_side.toolkit import SETTINGS, VALIDATION, loaders, new_model, step
from benchmarks.turns import clocks, say, since

PACKAGES: Final = ("pykt-toolkit", "torch", "numpy", "pandas")


def main(arguments: Sequence[str] | None = None) -> None:
    """Say what there is after a first step, then train an epoch per line."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    train = loaders(options.model, options.data, options.batch).train
    model = new_model(options.model, options.data)
    optimizer = torch.optim.Adam(model.parameters(), SETTINGS[options.model].learning_rate)
    step(model, optimizer, next(iter(train)))
    say(**_content(options.data / TRAIN_FILE), **{name: version(name) for name in PACKAGES})
    for _ in sys.stdin:
        started = clocks()
        for data in train:
            step(model, optimizer, data)
        say(**since(started))


def _content(path: Path) -> dict[str, Any]:
    """What an epoch holds."""
    windows = pd.read_csv(path)
    windows = windows[windows["fold"] != VALIDATION]
    repeats = [row.split(",") for row in windows["is_repeat"]]
    questions = sum(row.count("0") for row in repeats)
    return {
        "questions": questions,
        "rows": questions + sum(row.count("1") for row in repeats),
        "slots": len(windows) * MAXLEN,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that `sequences.write` made")
    parser.add_argument("--model", choices=SETTINGS, required=True)
    parser.add_argument("--batch", type=int, required=True, help="windows per step")
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    main()
