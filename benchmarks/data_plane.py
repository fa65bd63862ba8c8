"""The data plane's figures in one run; the last line of output is one JSON object. docs/benchmarks.md explains them.

(a) core: the reference's restated columns and the windows at the reference size, against plain pandas;
(c) encode: latency of one history with its targets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, Final

from benchmarks import core, encode_latency
from benchmarks.environment import environment

PARTS: Final = ("core", "encode")
QUICK_USERS: Final = 600


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts that are asked for and print."""
    options = _parser().parse_args(arguments)
    figures: dict[str, Any] = {"benchmark": "data_plane", "environment": environment()}
    if "core" in options.parts:
        users, repeats = (QUICK_USERS, 3) if options.quick else (core.USERS, options.repeats)
        figures |= core.measure(users, repeats)
    if "encode" in options.parts:
        figures |= encode_latency.measure(options.quick)
    print(json.dumps(figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=PARTS, help="some of " + ",".join(PARTS))
    parser.add_argument("--repeats", type=int, default=5, help="of each side in part (a)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, not how fast")
    return parser


if __name__ == "__main__":
    main()
