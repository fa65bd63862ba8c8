"""Serving figures side by side: our endpoint, BentoML around the same predictor, and the bare predictor in a loop.

The load generator runs in a process of its own, pinned to one core, which the servers may use too. All servers are
started first and take turns of seconds, in which the others' processes are stopped (SIGSTOP): a machine's speed changes
from minute to minute, and an idle server takes some of it. Medians are told. Every answer is compared with the
predictor's own. The last line of output is one JSON object; docs/benchmarks.md explains it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import ledger, serving_requests
from benchmarks.environment import environment, seconds_of
from benchmarks.load import Load, Plan
from benchmarks.serving_requests import Body, Students, queries
from benchmarks.serving_sides import Server, bentoml, ours
from dkt_ray.data.query import Query
from dkt_ray.registry.cache import local_copy
from dkt_ray.registry.store import Registry
from dkt_ray.serving.predictor import Predictor
from dkt_ray.storage import open_store

CONNECTIONS: Final = (1, 8, 32)
MIB: Final = 2**20
MOST: Final = CONNECTIONS[-1]
WAYS: Final = ("proxy", "haproxy")
SHAPES: Final = ((340, 1), (340, 100), (2000, 1), (2000, 100))  # events, targets
WARM: Final = 0.2  # share of a turn at whose start nothing is counted
BARE: Final = "bare"


class Asked(NamedTuple):
    """Requests, and what is to be answered."""

    bodies: list[Body]
    queries: list[Query]
    oracle: dict[str, list[npt.NDArray[np.float64]]]

    @classmethod
    def of(cls, bodies: list[Body], predictor: Predictor) -> Asked:
        """With the answers of the bare predictor."""
        asked = queries(bodies)
        return cls(bodies, asked, {predictor.version: [each.probability for each in predictor.answer(asked)]})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    if options.quick:
        options.ways = options.ways[:1]
        options.seconds, options.turns, options.bodies, options.singles = 1.0, 1, 20, 20
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="dkt-serving-") as folder:
        source, digest, log = serving_requests.source(options, Path(folder))
        store, bundle = _apart(source, digest, Path(folder))
        students = Students.read(log, options.split, options.fold)
        predictor = Predictor.load(bundle, digest)
        about = {"benchmark": "serving", "environment": environment(), "bundle": digest}
        figures = measure(predictor, students, store, bundle, options)
    print(json.dumps(about | {"members": list(predictor.members)} | figures))


def measure(
    predictor: Predictor, students: Students, store: str, bundle: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """All figures; see the head of this file."""
    asked = Asked.of(students.bodies(options.bodies), predictor)
    with ExitStack() as running:
        settings = {"cache": str(bundle.parent), "min_replicas": options.replicas, "max_replicas": options.replicas}
        all_mine = [running.enter_context(ours(way, store, predictor.version, **settings)) for way in options.ways]
        ways, mine, peers = [server.name for server in all_mine], all_mine[-1], list[Server]()
        for workers in (1, 2) if options.bentoml else ():
            peers += running.enter_context(bentoml(options.bentoml, bundle, workers))
        servers = [*all_mine, *peers]
        turns = _alternating(all_mine, peers)
        closed = _closed(turns, predictor, asked, options)
        best = {c: _best(closed, c) for c in CONNECTIONS}
        opened, idle = {}, {}
        for server in turns:
            with _alone(servers, server):
                idle[server.name] = _idle_cpu(server, options.seconds)
                if server.name in {mine.name, best[MOST]} - opened.keys():
                    rate = _rate(closed, server.name) / 2
                    opened[server.name] = _turn(server, asked, options.seconds, rate=rate)
        memory = {server.name: round(server.held() / MIB) for server in servers}
        with _alone(servers, mine):  # for longer than Serve's other way in is well after, which is not asked any more
            shapes = _shapes(mine, predictor, students, options)
            many = _http_ms(mine, predictor, students.long(340, 10_000), 3)
    each_way = {name: {f"c{c}": _ratios(closed, name, best[c], c) for c in CONNECTIONS} for name in ways}
    return {
        "ours": mine.name,
        "replicas": options.replicas,
        "vs_bentoml": each_way[mine.name] if best[MOST] else None,
        "vs_bentoml_each_way": each_way if best[MOST] else None,
        "of_bare_c32": _ratio(closed[mine.name], closed[BARE], MOST, "per_s"),
        **_targets(predictor, students, options.singles),
        "targets_10000_http_ms": many,
        "events": serving_requests.lengths(asked.bodies),
        "closed": closed,
        "open_at_half": opened,
        "shapes": shapes,
        "memory_mib": memory,
        "idle_cpu": idle,
        "missing": [] if options.bentoml else ["BentoML: give the interpreter of its venv with --bentoml"],
    }


def _closed(
    servers: Sequence[Server], predictor: Predictor, asked: Asked, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Side -> connections -> medians over the turns, which the sides take one after another."""
    found: dict[str, dict[str, Any]] = {name: {} for name in [*dict.fromkeys(server.name for server in servers), BARE]}
    for connections in CONNECTIONS:
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in found}
        for _ in range(options.turns):
            for server in servers:
                with _alone(servers, server):
                    turns[server.name].append(_turn(server, asked, options.seconds, connections=connections))
            with _alone(servers):
                turns[BARE].append(_bare(predictor, asked.queries, connections, options.seconds))
        for name, several in turns.items():
            found[name][f"c{connections}"] = _medians(several)
    return found


def _alternating(mine: Sequence[Server], peers: Sequence[Server]) -> list[Server]:
    """Each peer after one of ours: Serve takes one that was stopped for 20 s for dead."""
    if not peers:
        return list(mine)
    return [server for number, peer in enumerate(peers) for server in (mine[number % len(mine)], peer)]


@contextmanager
def _alone(servers: Sequence[Server], server: Server | None = None) -> Iterator[None]:
    """The processes of the other servers stand still meanwhile; None: those of all."""
    busy = {os.getpid()} if server is None else {os.getpid(), server.process.pid}
    others = {other.process.pid: other for other in servers if other.process.pid not in busy}
    for other in others.values():
        other.stop()
    try:
        yield
    finally:
        for other in others.values():
            other.go_on()


def _turn(server: Server, asked: Asked, seconds: float, **loop: float) -> dict[str, Any]:
    """Figures of one stretch of load, CPU milliseconds per request, and what was not as it should be."""
    before = server.cpu_s()
    plan = Plan(server.port, server.bodies(asked.bodies), seconds=seconds, path=server.path, **loop)  # type: ignore[arg-type]
    entries = Load(plan).result()
    spent = server.cpu_s() - before
    return {
        **ledger.figures(entries, WARM * seconds),
        "cpu_ms": round(1000 * spent / len(entries), 2),
        "failed": len(ledger.failed(entries)),
        "wrong": len(ledger.wrong(entries, asked.oracle)),
    }


def _bare(predictor: Predictor, asked: Sequence[Query], batch: int, seconds: float) -> dict[str, Any]:
    """The predictor in a loop of this process, that many requests at a time."""
    started, worked, taken, place = time.perf_counter(), time.process_time(), [], 0
    while time.perf_counter() - started < seconds or not taken:
        chosen = [asked[(place + index) % len(asked)] for index in range(batch)]
        taken.append(seconds_of(lambda chosen=chosen: predictor.answer(chosen))[0])  # type: ignore[misc]
        place += batch
    p50, p99 = (float(1000 * each) for each in np.percentile(taken, [50, 99]))
    return {
        "per_s": round(place / (time.perf_counter() - started), 1),
        "p50_ms": round(p50, 2),
        "p99_ms": round(p99, 2),
        "cpu_ms": round(1000 * (time.process_time() - worked) / place, 2),
    }


def _medians(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each figure; failures and wrong answers are added up."""
    names = [name for name in ("per_s", "p50_ms", "p99_ms", "cpu_ms") if all(name in turn for turn in turns)]
    sums = {name: sum(turn[name] for turn in turns) for name in ("failed", "wrong") if name in turns[0]}
    return {name: round(statistics.median(turn[name] for turn in turns), 2) for name in names} | sums


def _rate(closed: Mapping[str, Mapping[str, Any]], name: str) -> float:
    """Requests per second of a side at most connections."""
    return float(closed[name][f"c{MOST}"]["per_s"])


def _best(closed: Mapping[str, Mapping[str, Any]], connections: int) -> str | None:
    """BentoML's setting that answers most at this number of connections; None where it was not measured."""
    peers = [name for name in closed if name.startswith("bentoml")]
    return max(peers, key=lambda name: closed[name][f"c{connections}"]["per_s"], default=None)


def _ratios(closed: Mapping[str, Mapping[str, Any]], mine: str, peer: str | None, connections: int) -> dict[str, Any]:
    """Our requests per second, p99 and CPU time of a request over the peer's."""
    names = {"requests": "per_s", "p99": "p99_ms", "cpu": "cpu_ms"}
    one, other = closed[mine], closed[peer or mine]
    return {told: _ratio(one, other, connections, name) for told, name in names.items()} | {"peer": peer}


def _ratio(
    one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]], connections: int, name: str
) -> float | None:
    """One side's figure over another's; None where there is none, or nothing to compare with."""
    over, under = one[f"c{connections}"].get(name), other[f"c{connections}"].get(name)
    return round(over / under, 3) if over is not None and under else None


def _idle_cpu(server: Server, seconds: float) -> float:
    """Share of a core that a server takes when nobody asks."""
    before, started = server.cpu_s(), time.perf_counter()
    time.sleep(seconds)
    return round((server.cpu_s() - before) / (time.perf_counter() - started), 3)


def _shapes(
    server: Server, predictor: Predictor, students: Students, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """One request after another, by length of history and number of targets."""
    found = {}
    for events, targets in SHAPES:
        asked = Asked.of([students.long(events, targets)], predictor)
        served = _turn(server, asked, options.seconds, connections=1)
        bare = _bare(predictor, asked.queries, 1, options.seconds / 2)
        found[f"{events}x{targets}"] = served | {"bare_p50_ms": bare["p50_ms"], "bare_cpu_ms": bare["cpu_ms"]}
    return found


def _targets(predictor: Predictor, students: Students, singles: int) -> dict[str, float]:
    """One student with many targets, against a call for each target."""
    together = queries([students.long(340, 1_000)])
    alone = queries([students.long(340, 1)])
    predictor.answer(together)
    many = statistics.median(seconds_of(lambda: predictor.answer(together))[0] for _ in range(5))
    one = statistics.median(seconds_of(lambda: predictor.answer(alone))[0] for _ in range(singles))
    most = queries([students.long(340, 10_000)])
    ten_thousand = statistics.median(seconds_of(lambda: predictor.answer(most))[0] for _ in range(3))
    return {
        "targets_1000_speedup": round(1_000 * one / many, 1),
        "targets_1000_ms": round(1000 * many, 2),
        "targets_1_ms": round(1000 * one, 2),
        "targets_10000_ms": round(1000 * ten_thousand, 1),
    }


def _http_ms(server: Server, predictor: Predictor, body: Body, repeats: int) -> float:
    """Median milliseconds of one request over HTTP."""
    asked = Asked.of([body], predictor)
    with Load(Plan(server.port, server.bodies(asked.bodies), connections=1, path=server.path)) as load:
        load.wait_for(repeats)
    assert ledger.wrong(load.entries, asked.oracle) == []
    return ledger.latencies(load.entries)["p50_ms"]


def _apart(source: str, digest: str, folder: Path) -> tuple[str, Path]:
    """A store with this bundle only, since a rollout moves an alias; and the bundle's folder."""
    bundle = local_copy(Registry(open_store(source)), digest, folder / "copies")
    Registry(open_store(folder / "store")).publish(bundle, digest)
    return str(folder / "store"), bundle


def _ways(text: str) -> list[str]:
    if set(text.split(",")) - set(WAYS):
        raise argparse.ArgumentTypeError(f"{text!r}: expected some of {','.join(WAYS)}")
    return text.split(",")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    python = os.environ.get("DKT_BENTO_PYTHON")
    serving_requests.add_source(parser)
    parser.add_argument("--bentoml", default=python, help="interpreter with BentoML 1.4.39; default: DKT_BENTO_PYTHON")
    parser.add_argument("--ways", type=_ways, default=list(WAYS), help="proxy,haproxy; the last one is measured most")
    parser.add_argument("--replicas", type=int, default=1, help="of ours; the bare predictor is one process")
    parser.add_argument("--bodies", type=int, default=400, help="different requests")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a turn")
    parser.add_argument("--turns", type=int, default=5, help="of each side; medians are compared")
    parser.add_argument("--singles", type=int, default=1000, help="calls with one target")
    parser.add_argument("--quick", action="store_true", help="one short turn: shows that it runs, not how fast")
    return parser


if __name__ == "__main__":
    main()
