"""The ensemble step at 10 members and 5 million rows: from out-of-fold probabilities to the chain that is served.

Every way of combining them (Ray Tune's search aside), the choice in nested folds, the trial removals, the calibrator
and the intervals of the shares. The members are made up: sharper and duller views of one truth. The last line of output
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.environment import environment, seconds_of
from dkt_ray.ensemble.chain import sigmoid
from dkt_ray.ensemble.choice import Members
from dkt_ray.pipelines.combine import CombineConfig, combine

FOLDS = 5
ROWS_PER_USER = 200


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    members = made_up(20_000 if options.quick else options.rows, options.members)
    before = time.process_time()
    seconds, combined = seconds_of(lambda: combine(CombineConfig(tune_trials=0), members))
    figures: dict[str, Any] = {
        "rows": len(members.y),
        "members": len(members.names),
        "method": combined.method,
        "kept": list(combined.chain.members),
        "seconds": round(seconds, 1),
        "processor_s": round(time.process_time() - before, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps({"benchmark": "ensemble_step", "environment": environment(), **figures}))


def made_up(rows: int, members: int) -> Members:
    """Members of falling use for the answers of made-up students."""
    random = np.random.default_rng(0)
    user = (np.arange(rows) // ROWS_PER_USER).astype(np.int32)
    truth = random.normal(size=rows) + random.normal(size=user[-1] + 1)[user]
    y = (random.random(rows) < sigmoid(truth)).astype(np.int8)
    p = np.empty((rows, members))
    for column in range(members):
        p[:, column] = sigmoid(0.8 * truth + random.normal(size=rows) * (0.4 + 0.1 * column))
    length = (np.arange(rows) % ROWS_PER_USER).astype(np.int32)
    names = tuple(f"member_{column}" for column in range(members))
    return Members(names, p, y, length, (user % FOLDS).astype(np.int8), user)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="20,000 rows, for a test")
    return parser


if __name__ == "__main__":
    main()
