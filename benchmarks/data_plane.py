"""The data plane's figures in one run; the last line of output is one JSON object. docs/benchmarks.md explains them.

(a) core: the reference's restated columns and the windows at the reference size, against plain pandas;
(b) ray: `dkt prepare` with engine=ray, its start included, at several sizes, and against plain pandas on the same CSV;
    with --s3 also from a bucket to a bucket;
(c) encode: latency of one history with its targets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import core, encode_latency, ray_job, s3_job
from benchmarks.environment import environment

PARTS: Final = ("core", "ray", "encode")
REQUIRED: Final = (  # in every last line; null where not measured
    *("core_speedup", "ray_speedup", "row_time_ratio_20m", "peak_gib", "encode_ms_340x1", "encode_ms_340x1000"),
)
QUICK_USERS, QUICK_ROWS = 600, 100_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts that are asked for and print."""
    options = _parser().parse_args(arguments)
    figures: dict[str, Any] = {"benchmark": "data_plane", "environment": environment()}
    figures |= dict.fromkeys(REQUIRED)
    if "core" in options.parts:
        users, repeats = (QUICK_USERS, 3) if options.quick else (core.USERS, options.repeats)
        figures |= core.measure(users, repeats)
    if "ray" in options.parts:
        sizes = [QUICK_ROWS] if options.quick else options.rows
        figures |= ray_job.measure(options.folder, sizes, 1 if options.quick else options.ray_repeats)
    if options.s3:
        figures["s3"] = s3_job.measure(options.folder, options.s3)
    if "encode" in options.parts:
        figures |= encode_latency.measure(options.quick)
    print(json.dumps(figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=_parts, default=PARTS, help="some of " + ",".join(PARTS))
    parser.add_argument("--repeats", type=int, default=5, help="of each side in part (a)")
    parser.add_argument("--rows", type=_sizes, default=[2_500_000, 20_000_000], help="of part (b), e.g. 2.5m,20m,100m")
    parser.add_argument("--ray-repeats", type=int, default=1, help="of both sides of part (b), at its smallest size")
    parser.add_argument("--s3", type=_size, help="also this many rows from s3:// to s3:// (SeaweedFS), e.g. 20m")
    parser.add_argument("--folder", type=Path, default=Path("data/benchmarks"), help="for logs, which are kept")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, not how fast")
    return parser


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{text!r}: expected some of {','.join(PARTS)}")
    return parts


def _sizes(text: str) -> list[int]:
    return [_size(each) for each in text.split(",")]


def _size(text: str) -> int:
    """`2.5m` is 2,500,000."""
    return round(float(text.lower().removesuffix("m")) * (1_000_000 if text.lower().endswith("m") else 1))


if __name__ == "__main__":
    main()
