"""The ensemble step at size: out-of-fold tables in a store, combined in every way, thinned, calibrated, measured.

Ten made-up members of rising noise score five million answers. The step runs in a process of its own, as `dkt ensemble`
runs it: it reads and aligns the tables, combines, and measures every contender with 200 resamples of the students. Only
the baselines are left out (one made-up column stands in), which read encoded rows that nobody made here. The last line
of output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import ray

from benchmarks.environment import GIB, environment
from benchmarks.process_tree import run
from dkt_ray.config import build
from dkt_ray.data.history import Coded
from dkt_ray.ensemble.choice import Members
from dkt_ray.metrics import first_attempts
from dkt_ray.pipelines.blend import shares_by_way
from dkt_ray.pipelines.combine import CombineConfig, combine
from dkt_ray.pipelines.figures import Answers, Contender, Heading, Settings, make_report
from dkt_ray.pipelines.measuring import begin_measuring, measure_in_parallel, member_contenders, way_contenders
from dkt_ray.session import connect, prepare_environment
from dkt_ray.storage import open_store
from dkt_ray.training.protocol import EvaluationSet, Scored, align_members

FOLDS: Final = 5
PER_USER: Final = 340  # rows of a student, as in the reference data
QUESTIONS: Final = 9454


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    if options.store is not None:
        print(json.dumps(_step(options.store, options.members, options.trials, options.samples)))
        return
    prepare_environment()
    members, rows = (3, 30_000) if options.quick else (options.members, options.rows)
    with tempfile.TemporaryDirectory() as folder:
        _write(folder, members, rows)
        shared = ["--members", str(members), "--trials", str(options.trials), "--samples", str(options.samples)]
        ran = run([sys.executable, "-m", "benchmarks.ensemble_job", "--store", folder, *shared], os.environ)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    figures |= {"members": members, "rows": rows, "processor_s": round(used.ru_utime + used.ru_stime, 1)}
    by_process = {name: round(peak / GIB, 2) for name, peak in ran.peak.items() if peak > GIB / 20}
    figures |= {
        "peak_by_process_gib": by_process,
        "peak_gib": round(ran.peak_total / GIB, 2),
        "with_start_s": round(ran.seconds, 1),
    }
    print(json.dumps({"benchmark": "ensemble_job", "environment": environment(), **figures}))


def _step(url: str, members: int, trials: int, samples: int) -> dict[str, Any]:
    """The step itself; Ray is started before the clock."""
    store, seconds = open_store(url), dict[str, float]()
    connect()
    ray.get(ray.remote(_nothing).remote())
    started = time.perf_counter()
    base, shared = _aligned([f"member{k}" for k in range(members)], Path(url))
    seconds["read"] = time.perf_counter() - started
    question = store.read_table("question.parquet")["question"].to_numpy()
    answers, how = Answers.of(base, first_attempts(base.user.codes, question)), Settings(samples)
    config = build(CombineConfig, {"tune_trials": trials})
    given = ray.get(shared)
    alone = member_contenders(shared, given.names)
    begun = begin_measuring(answers, alone.values(), how)
    combined = combine(config, given)
    seconds["combine"] = time.perf_counter() - started - sum(seconds.values())
    contenders = {"ensemble": Contender("ensemble", combined.calibrated)}
    contenders |= way_contenders(combined.ways, shared) | alone
    contenders["counting"] = Contender("baseline", given.p[:, -1])
    report = make_report(
        Heading("Benchmark", "", "", ""),
        _evaluation_set(base),
        answers,
        contenders,
        shares_by_way(combined, given),
        how,
        partial(measure_in_parallel, begun=begun),
    )
    seconds["measure"] = time.perf_counter() - started - sum(seconds.values())
    ray.shutdown()
    best = max(value["auc"]["value"] for value in report["models"].values() if value["kind"] == "member")
    return {
        "seconds": round(sum(seconds.values()), 1),
        "parts": {name: round(value, 1) for name, value in seconds.items()},
        "method": combined.method,
        "kept": len(combined.chain.members),
        "auc": report["models"]["ensemble"]["auc"],
        "best_member_auc": best,
        "gain": report["differences"]["best_member"]["models"]["ensemble"],
    }


def _aligned(names: Sequence[str], folder: Path) -> tuple[Scored, ray.ObjectRef[Members]]:
    """The tables as `dkt ensemble` reads them, and the members in the object store."""
    store = open_store(folder)
    scored = {name: Scored.from_table(store.read_table(f"{name}.parquet"), name) for name in names}
    base, columns = align_members(scored)
    return base, ray.put(Members(tuple(names), columns, base.correct, base.position, base.fold, base.user.codes))


def _write(folder: str, members: int, rows: int) -> None:
    """Tables of members that see the same truth through noise of their own and noise that they share."""
    rng, store = np.random.default_rng(0), open_store(folder)
    users = max(rows // PER_USER, FOLDS)
    user = np.sort(rng.integers(0, users, rows)).astype(np.int32)
    position = (np.arange(rows) - np.searchsorted(user, user)).astype(np.int32)
    names = np.array([f"u{k:07d}" for k in range(users)], object)
    truth = rng.normal(size=rows) * 1.3
    correct = (rng.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.int8)
    shared = truth + 0.5 * rng.normal(size=rows)
    for k, noise in enumerate(np.linspace(0.7, 1.4, members)):
        p = 1 / (1 + np.exp(-(shared + noise * rng.normal(size=rows))))
        scored = Scored(Coded(user, names), position, (user % FOLDS).astype(np.int8), correct, p)
        store.write_table(f"member{k}.parquet", scored.to_table())
    store.write_table("question.parquet", _questions(rng, rows))


def _questions(rng: np.random.Generator, rows: int) -> pa.Table:
    return pa.table({"question": rng.integers(0, QUESTIONS, rows).astype(np.int32)})


def _evaluation_set(base: Scored) -> EvaluationSet:
    return EvaluationSet(
        data="made-up",
        folds=FOLDS,
        rows=base.rows,
        pairs="made-up",
        first_position=1,
        context=100,
        bundle="none",
        timestamp_is="submitted",
    )


def _nothing() -> None:
    """What starts a worker."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--trials", type=int, default=12, help="of Ray Tune")
    parser.add_argument("--samples", type=int, default=200, help="resamples of the students")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs")
    parser.add_argument("--store", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
