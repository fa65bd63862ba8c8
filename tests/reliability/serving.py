"""The service under load, and what is done to it: rollouts, kills, bad bundles, overload; one report with raw ledgers.

Without options, small bundles of simulated students are served; with --store, --bundle and --data the real ones. Each
run and its goals stand in `RUNS`; the report (report.json, report.html, ledgers/) tells which goals were met. The
process fails if anything was wrong: a failed or a wrong answer where there should be none, a fault that did not fire.
HAProxy is the way in where the environment says so (`python -m dkt_ray.session --haproxy FOLDER`).
"""

from __future__ import annotations

import argparse
import html
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import ledger
from benchmarks.environment import environment
from benchmarks.serving_requests import add_source
from benchmarks.serving_sides import free_port
from dkt_ray import session
from dkt_ray.privacy import PRIVACY_KEY
from tests import bundles
from tests.bad_bundles import BAD
from tests.reliability import events, scenarios
from tests.reliability.head_kill import head_kill
from tests.reliability.scenarios import Outcome
from tests.reliability.world import World, histories_of, real, tiny

RATE: Final = 30.0
PAGE: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Reliability of the service</title>
<style>body{{font:15px/1.5 system-ui;margin:2rem auto;max-width:72rem;padding:0 1rem}}td,th{{text-align:left;
vertical-align:top;padding:.3rem .8rem;border-top:1px solid #ccc}}pre{{margin:0;white-space:pre-wrap}}</style>
<h1>Reliability of the service</h1><pre>{about}</pre>
<table><tr><th>run<th>goals<th>wrong<th>figures<th>ledger</tr>{rows}</table></html>
"""


class Goal(NamedTuple):
    """A figure that a run should reach."""

    says: str
    met: Callable[[dict[str, Any]], bool]


class Run(NamedTuple):
    """A scenario at its full size."""

    call: Callable[[World, Path, argparse.Namespace], Outcome]
    goals: Sequence[Goal] = ()


def _with_events(
    scenario: Callable[[World, str, Path, argparse.Namespace], Outcome],
) -> Callable[[World, Path, argparse.Namespace], Outcome]:
    """A scenario of a service that keeps events, in a database of its own."""

    def call(world: World, folder: Path, options: argparse.Namespace) -> Outcome:
        url, digest = f"sqlite:///{folder}/events.db", world.alias() or world.digests[0]
        world.rollout(digest, {"events": url})
        try:
            return scenario(world, url, folder, options)
        finally:
            world.rollout(digest)

    return call


RUNS: Final[dict[str, Run]] = {
    "rollouts": Run(
        lambda world, _, options: scenarios.rollouts(world, options.rollouts, RATE),
        [Goal("rollback within 15 s", lambda figures: figures["rollback_s"] <= 15)],
    ),
    "code_rollouts": Run(lambda world, _, options: scenarios.code_rollouts(world, options.code_rollouts, RATE)),
    "replica_kills": Run(
        lambda world, _, options: scenarios.replica_kills(world, options.kills, options.every, RATE),
        [
            Goal(
                "the client sees no failure", lambda figures: figures["client"]["requests"] == figures["client"]["ok"]
            ),
            Goal("only what was in flight fails", lambda figures: figures["stray_failures"] == 0),
        ],
    ),
    "controller_kill": Run(lambda world, _, __: scenarios.controller_kill(world, RATE)),
    "proxy_kill": Run(
        lambda world, _, __: scenarios.proxy_kill(world, RATE),
        [
            Goal("back within 5 s", lambda figures: figures["outage_s"] <= 5),
            Goal("the client sees no failure", lambda figures: figures["client_failures"] == 0),
        ],
    ),
    "head_kill": Run(
        lambda world, _, options: head_kill(world, options.head, RATE),
        [Goal("the client gets 99.9 %", lambda figures: figures["client_share"] >= 0.999)],
    ),
    "bad_bundles": Run(lambda world, folder, _: scenarios.bad_bundles(world, BAD, folder / "bad", RATE)),
    "overload": Run(
        lambda world, _, options: scenarios.overload(world, options.overload, 20.0),
        [
            Goal("goodput of 85 % of the knee", lambda figures: figures["goodput"] >= 0.85),
            Goal("what is not answered is refused with 429", lambda figures: figures["late"] == 0),
            Goal("p99 of a reject within 1 s", lambda figures: figures["refused_ms"].get("p99_ms", 0.0) <= 1000),
            Goal("memory back", lambda figures: figures["memory_mib"][-1] <= scenarios.FLAT * figures["memory_mib"][0]),
        ],
    ),
    "scaling": Run(
        lambda world, _, __: scenarios.scaling(world, 3 if (os.cpu_count() or 1) >= 4 else 2),
        [Goal("scaled up within 15 s of the step", lambda figures: figures["up_s"] <= 15)],
    ),
    "writers": Run(
        _with_events(lambda world, url, folder, options: events.writers(world, url, 4, options.events, folder))
    ),
    "stored_users": Run(
        _with_events(lambda world, url, _, options: events.stored_users(world, url, 10, 2000, 20.0, options.stored)),
        [Goal("p99 within 100 ms", lambda figures: figures["append_and_predict_p99_ms"] <= 100)],
    ),
    "forgotten": Run(
        _with_events(lambda world, url, folder, options: events.forgotten(world, url, options.forgotten, folder))
    ),
    "parity": Run(lambda world, folder, options: scenarios.parity(world, _students(options), folder)),
    "parity_exact": Run(lambda world, folder, options: scenarios.parity_exact(world, _students(options), folder)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, report, and say whether anything was wrong."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault(PRIVACY_KEY, secrets.token_hex(16))
    session.connect()
    from ray import serve

    found = []
    with tempfile.TemporaryDirectory(prefix="dkt-reliability-") as name:
        folder = Path(name)
        world = _world(options, folder)
        world.rollout(world.digests[0])
        for run in options.only:
            (folder / run).mkdir()
            started = time.monotonic()
            outcome = _run(run, world, folder / run, options)
            found.append(_told(run, outcome, round(time.monotonic() - started), options.out))
            print(json.dumps(found[-1]), flush=True)
        serve.shutdown()
    way = "haproxy" if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" else "proxy"
    _write({"environment": environment(), "way_in": way, "bundles": world.digests, "runs": found}, options.out)
    wrong = [f"{each['run']}: {problem}" for each in found for problem in each["wrong"]]
    for problem in wrong:
        print(f"wrong: {problem}")
    print(json.dumps({"runs": len(found), "wrong": len(wrong), "report": str(options.out / "report.html")}))
    return int(bool(wrong))


def _run(name: str, world: World, folder: Path, options: argparse.Namespace) -> Outcome:
    """What came of a run, also where it could not go on."""
    try:
        return RUNS[name].call(world, folder, options)
    except Exception as error:  # noqa: BLE001 - the border of a run: the report tells, the others go on
        return Outcome(name, {}, [f"it ended with {error!r}"])


def _world(options: argparse.Namespace, folder: Path) -> World:
    if options.store is None:
        return tiny(folder, free_port())
    return real(options.store, options.bundle, options.data, options.split, options.fold, folder, free_port())


def _students(options: argparse.Namespace) -> Any:
    if options.data is None:
        return bundles.simulate(users=options.students, seed=1)
    return histories_of(options.data, options.students)


def _told(run: str, outcome: Outcome, seconds: int, out: Path) -> dict[str, Any]:
    """A run as the report has it; its ledgers are written."""
    for name, entries in outcome.ledgers.items():
        ledger.write(out / "ledgers" / f"{run}_{name}.jsonl", entries)
    goals = {goal.says: bool(outcome.figures) and goal.met(outcome.figures) for goal in RUNS[run].goals}
    return {
        "run": run,
        "seconds": seconds,
        "goals": goals,
        "wrong": outcome.wrong,
        "figures": outcome.figures,
        "ledgers": [f"ledgers/{run}_{name}.jsonl" for name in outcome.ledgers],
    }


def _write(report: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1))

    def cell(value: Any) -> str:
        return f"<td><pre>{html.escape(value if isinstance(value, str) else json.dumps(value, indent=1))}</pre>"

    rows = [
        "<tr>"
        + cell(f"{run['run']}\n{run['seconds']} s")
        + cell("\n".join(f"{'met' if met else 'NOT MET'}: {says}" for says, met in run["goals"].items()))
        + cell("\n".join(run["wrong"]) or "nothing")
        + cell(run["figures"])
        + "<td>"
        + " ".join(f'<a href="{name}">{name}</a>' for name in run["ledgers"])
        for run in report["runs"]
    ]
    about = html.escape(json.dumps({name: report[name] for name in ("environment", "way_in", "bundles")}, indent=1))
    (out / "report.html").write_text(PAGE.format(about=about, rows="".join(rows)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(RUNS), help=",".join(RUNS))
    parser.add_argument("--out", type=Path, default=Path("data/reliability"), help="folder of the report")
    add_source(parser)
    parser.add_argument("--rollouts", type=int, default=30)
    parser.add_argument("--code-rollouts", type=int, default=20)
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between kills")
    parser.add_argument("--head", type=float, default=120.0, help="seconds of load after the head is killed")
    parser.add_argument("--overload", type=float, default=120.0, help="seconds of it")
    parser.add_argument("--events", type=int, default=10_000, help="of each of four writers")
    parser.add_argument("--stored", type=float, default=60.0, help="seconds of requests about stored users")
    parser.add_argument("--forgotten", type=int, default=1_000, help="users who are deleted")
    parser.add_argument("--students", type=int, default=2_000, help="whose answers are compared on all paths")
    return parser


if __name__ == "__main__":
    sys.exit(main())
