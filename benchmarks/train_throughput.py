"""Questions per second of training: our families against pyKT's models of the same width, depth, heads and batch.

Both sides train on the same users, on one machine, with the same number of threads, each in a process of its own, in
turns of one epoch. A question counts once, whatever it is made of: neither padding nor the rows of its further concepts
count. Beside it a control without padding and repeats: histories of 200 questions with one concept each. The last line
of output is one JSON object: family -> ratio, and all else under further keys. docs/benchmarks.md explains them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import polars as pl

from benchmarks import throughput_data
from benchmarks.environment import environment
from benchmarks.throughput_data import ROOT, Data
from benchmarks.turns import Side
from dkt_ray.models.catalog import CATALOG
from dkt_ray.session import EVERYWHERE, ON_THIS_MACHINE


class Pair(NamedTuple):
    """A family, and the model of pyKT that it is measured against, with its settings in `pykt_side/toolkit.py`."""

    model: str
    batch: int  # windows per step, as pyKT's wandb_train.py has it
    settings: dict[str, Any]  # of our family: as wide and as deep as the model
    question: int = 64  # width of a question's own embedding

    @property
    def ids_only(self) -> dict[str, Any]:
        """Settings of our family in the form that reads what the model reads: questions, concepts and answers."""
        embeddings = {"question": self.question}
        return self.settings | {"numbers": False, "embeddings": embeddings, "concept_embedding": 64}


PAIRS: Final = {
    "lstm": Pair("dkt", 256, {"width": 64, "layers": 1}),
    "lstm_attention": Pair("dkt", 256, {"width": 64, "layers": 1}),
    "saint": Pair("saint", 64, {"width": 64, "layers": 2, "heads": 8}),
    "akt": Pair("akt", 64, {"width": 64, "encoder_layers": 1, "layers": 1, "heads": 8}, question=1),
}
WINDOW: Final = 200  # rows of pyKT's windows
QUESTIONS: Final = 1_200  # of the part of the logs, for each window of a step: about 20 of pyKT's steps on EdNet
FULL: Final = 4  # steps of the control
OURS: Final = "import json, sys; from benchmarks import our_side; our_side.main(json.loads(sys.argv[1]))"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    known = [family for family in options.families if family in CATALOG]
    missing = [family for family in options.families if family not in CATALOG]
    if options.quick:
        known, options.turns, options.batch = known[:1], 1, 4
    measured: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        logs = pl.read_csv(_logs(options, Path(folder)), infer_schema=False)
        for family in known:
            measured[family] = measure(family, logs, Path(folder) / family, options)
    figures: dict[str, Any] = {family: found["part"]["ratio"] for family, found in measured.items()}
    figures["ids_only"] = {family: found["part"]["ids_ratio"] for family, found in measured.items()}
    figures["control"] = {family: found["full"]["ratio"] for family, found in measured.items()}
    about = {"benchmark": "train_throughput", "environment": environment(), "threads": options.threads}
    print(json.dumps(about | figures | {"missing": missing, "details": measured}))


def measure(family: str, logs: pl.DataFrame, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A family and its peer on a part of the logs, and on full windows.

    Args:
        logs: six columns.
        folder: for the files of both sides.
    """
    batch = options.batch or PAIRS[family].batch
    folder.mkdir()
    part = throughput_data.part(logs, (options.questions or QUESTIONS) * batch)
    found = {}
    for name, rows in {"part": part, "full": throughput_data.full_windows(FULL * batch, WINDOW)}.items():
        data = throughput_data.write(rows, folder / name, _pykt(options), _environment(options))
        # a batch holds as many full windows as pyKT's; ours have a stream of past rows and one of targets
        settings = {"batch_rows": 2 * WINDOW * batch} | ({"context": WINDOW} if name == "full" else {})
        found[name] = _in_turns(family, data, settings, batch, options)
    return found


def _in_turns(
    family: str, data: Data, settings: Mapping[str, Any], batch: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Questions per second and memory of our family, of its form that reads ids only, and of pyKT's model."""
    threads = {"threads": options.threads}
    ours = {"store": str(data.store), "family": family, "turns": options.turns, **threads}
    forms = {"ours": PAIRS[family].settings} | ({} if options.quick else {"ids_only": PAIRS[family].ids_only})
    if options.compiled:
        forms["compiled"] = PAIRS[family].settings | {"compiled": True}
    commands = {
        name: [sys.executable, "-c", OURS, json.dumps(ours | {"settings": form | settings})]
        for name, form in forms.items()
    }
    if _pykt(options):
        facts = {"data": data.sequences, "model": PAIRS[family].model, "batch": batch, **threads}
        words = [word for name, value in facts.items() for word in (f"--{name}", str(value))]
        commands["pykt"] = [*_pykt(options), "-m", "benchmarks.pykt_side.throughput", *words]
    sides = {name: Side(command, _environment(options)) for name, command in commands.items()}
    for _ in range(options.turns):
        for side in sides.values():
            side.turn()
    found: dict[str, Any] = {name: _figures(side) for name, side in sides.items()}
    ratios = {"ratio": _ratio(found, "ours"), "ids_ratio": _ratio(found, "ids_only")}
    return found | ratios | {"cpu_ratio": _ratio(found, "ours", "questions_per_cpu_s")}


def _ratio(found: Mapping[str, Mapping[str, float]], form: str, rate: str = "questions_per_s") -> float | None:
    """How many times the peer's rate; None where one of both was not measured."""
    if not {form, "pykt"} <= found.keys():
        return None
    return round(found[form][rate] / found["pykt"][rate], 2)


def _figures(side: Side) -> dict[str, Any]:
    """What a side has, how fast it is (the median of its turns), and the most memory that it held."""
    questions = side.facts["questions"]
    rates = {
        "questions_per_s": round(questions / side.median("seconds"), 1),
        "questions_per_cpu_s": round(questions / side.median("cpu_seconds"), 1),
    }
    return side.facts | rates | {"seconds": round(side.median("seconds"), 3), "peak_mib": side.close()}


def _logs(options: argparse.Namespace, folder: Path) -> Path:
    """The logs that are asked for, or EdNet's where they are known to be, or simulated ones."""
    if options.logs:
        return options.logs
    if "DKT_REAL_DATA" in os.environ and not options.quick:
        return Path(os.environ["DKT_REAL_DATA"]) / "ednet_8k.csv.gz"
    return throughput_data.simulated(folder / "logs", 30 if options.quick else 1_000)


def _pykt(options: argparse.Namespace) -> list[str]:
    return shlex.split(options.pykt_python or "")


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """Of both sides: the same number of threads, the repository's modules, no warnings of the peer's libraries."""
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return os.environ | EVERYWHERE | ON_THIS_MACHINE | threads | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    python = os.environ.get("DKT_PYKT_PYTHON")
    parser.add_argument("--pykt-python", default=python, help="interpreter with pykt-toolkit; default: DKT_PYKT_PYTHON")
    parser.add_argument("--logs", type=Path, help="CSV in six columns; default: DKT_REAL_DATA's EdNet, or simulated")
    parser.add_argument(
        "--families", type=lambda text: text.split(","), default=["lstm", "saint", "akt"], help=",".join(PAIRS)
    )
    parser.add_argument("--questions", type=int, help=f"of the logs per window of a step; default: {QUESTIONS}")
    parser.add_argument("--turns", type=int, default=5, help="epochs of each side; medians are compared")
    parser.add_argument("--batch", type=int, help="windows per step; default: pyKT's (256 for DKT, else 64)")
    parser.add_argument("--threads", type=int, default=1, help="of each side; the sides take turns")
    parser.add_argument("--compiled", action="store_true", help="our family once more, compiled by torch.compile")
    parser.add_argument("--quick", action="store_true", help="one family, small: shows that it runs, not how fast")
    return parser


if __name__ == "__main__":
    main()
