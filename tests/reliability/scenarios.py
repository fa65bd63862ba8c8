"""What is done to a service under load, and what must not come of it; each with sizes, so that a test can do a little.

A scenario proves that its fault fired: processes have other ids, a refusal was counted. What is `wrong` fails a run;
`figures` are told beside the goals that the report prints.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ledger
from benchmarks.ledger import OK, Entry
from dkt_ray.data.history import Histories
from dkt_ray.errors import RolloutError
from dkt_ray.pipelines import scoring
from dkt_ray.serving.deployments import LOOK_BACK_S, ServeArgs
from tests.bad_bundles import Bad
from tests.reliability.processes import (
    CONTROLLER,
    PROXY,
    REPLICA,
    Kill,
    held,
    kill,
    pids,
    replicas,
    wait_for_another,
    wait_for_replicas,
    wait_until,
)
from tests.reliability.user import User
from tests.reliability.world import FAST, World, alone, last_hidden
from tests.runs import write_log

REFUSED = 429
LATE = {408, 503, 504}  # clean, but not what an overload should give
LOAD_CONNECTIONS = 32  # of the closed loop that finds the knee
SETTLE_S = 120.0  # for memory to come back after an overload
OFFERED = 0.95  # of the rate of an overload, which the load generator must reach
FLAT = 1.1  # times the memory before, within which it is back


@dataclass
class Outcome:
    """What came of a scenario."""

    name: str
    figures: dict[str, Any]
    wrong: list[str]
    ledgers: dict[str, Sequence[Entry]] = field(default_factory=dict)


def rollouts(world: World, count: int, rate: float) -> Outcome:
    """One bundle after another, at least once, and at last `dkt rollback`."""
    seconds, problems, memory = [], [], {"replicas": [], "way_in": []}
    with world.load(rate=rate) as load:
        for number in range(count + 1):
            load.wait_for(10)
            before, target = pids(REPLICA), world.other()
            move = partial(world.rollout, target) if number < count else world.rollback
            seconds.append(move()["seconds"])
            load.wait_for(10)
            if not pids(REPLICA) - before or world.alias() != target:
                problems.append(f"move {number} started no other replica, or left the alias")
            memory["replicas"].append(round(held(REPLICA) / 2**20))
            memory["way_in"].append(round(held(PROXY) / 2**20))
    problems += _none_failed(load.entries) + world.wrong(load.entries)
    if len(ledger.versions(load.entries)) < len(world.digests):
        problems.append("not every bundle answered")
    *rolled, back = seconds
    figures = {"longest_rollout_s": max(rolled), "rollback_s": back, "memory_mib": memory}
    return _outcome("rollouts", problems, load.entries, rollouts=count, **figures)


def code_rollouts(world: World, count: int, rate: float) -> Outcome:
    """The same bundle in new replicas each time, one at a time: an argument of the application differs."""
    digest, problems = world.alias() or world.digests[0], []
    one = {"min_replicas": 1, "max_replicas": 1}
    world.rollout(digest, one)
    with world.load(rate=rate) as load:
        for number in range(count):
            load.wait_for(10)
            before = pids(REPLICA)
            world.rollout(digest, one | {"max_batch_requests": 16 + number})
            load.wait_for(10)
            if not pids(REPLICA) - before:
                problems.append(f"rollout {number} started no other replica")
    problems += _none_failed(load.entries) + world.wrong(load.entries)
    world.rollout(digest)
    return _outcome("code_rollouts", problems, load.entries, rollouts=count)


def replica_kills(world: World, count: int, every_s: float, rate: float, seed: int = 0) -> Outcome:
    """A replica of two is killed, the next one when as many answer again."""
    chance, kills, outages = random.Random(seed), [], []
    wait_for_replicas(FAST["min_replicas"])
    with User(world) as user, world.load(rate=rate) as load:
        for _ in range(count):
            load.wait_for(10)
            before = pids(REPLICA)
            kills.append(kill(chance.choice(sorted(before))))
            wait_for_another(REPLICA, before)
            wait_for_replicas(FAST["min_replicas"])
            outages.append(Kill(kills[-1].after, time.monotonic()))
            user.wait_for(5)
            time.sleep(max(0.0, kills[-1].before + every_s - time.monotonic()))
        load.wait_for(10)
    failures, clean = _failures(load.entries)
    problems = [f"the client failed: {entry.error}" for entry in ledger.failed(user.entries)]
    problems += world.wrong(load.entries) + world.wrong(user.entries)
    problems += [f"failed though both replicas were there: {entry.error}" for entry in stray(failures, outages)]
    if len(clean) < len(failures):
        problems += [f"not a clean error: {entry.error}" for entry in failures if entry not in clean]
    return _outcome(
        "replica_kills",
        problems,
        load.entries,
        user.entries,
        kills=count,
        raw_failures=len(failures),
        in_flight=[len(load.entries) - len(stray(load.entries, [at])) for at in kills],
        stray_failures=len(stray(failures, kills)),
        replaced_s=[round(each.before - each.after, 1) for each in outages],
    )


def controller_kill(world: World, rate: float) -> Outcome:
    """Serve's controller is killed; what runs goes on, and the next rollout works."""
    with User(world) as user, world.load(rate=rate) as load:
        load.wait_for(10)
        before = pids(CONTROLLER)
        for pid in before:
            kill(pid)
        wait_for_another(CONTROLLER, before)
        load.wait_for(10)
        problems = [] if before else ["no controller was killed"]
        world.rollout(world.other())
        user.wait_for(5)
    problems += _none_failed([*load.entries, *user.entries])
    return _outcome("controller_kill", problems + world.wrong(load.entries), load.entries, user.entries)


def proxy_kill(world: World, rate: float) -> Outcome:
    """The way in is killed: with one node there is an outage, of which the client should see nothing."""
    with User(world) as user, world.load(rate=rate) as load:
        load.wait_for(10)
        before = pids(PROXY)
        killed = [kill(pid) for pid in sorted(before)]
        wait_for_another(PROXY, before)
        load.wait_for(10)
        user.wait_for(5)
    problems = world.wrong(load.entries) + world.wrong(user.entries) + ([] if killed else ["no proxy was killed"])
    failures, _ = _failures(load.entries)
    return _outcome(
        "proxy_kill",
        problems,
        load.entries,
        user.entries,
        outage_s=round(ledger.longest_silence(load.entries, min((each.after for each in killed), default=0.0)), 1),
        raw_failures=len(failures),
        client_failures=len(ledger.failed(user.entries)),
    )


def bad_bundles(world: World, several: Mapping[str, Bad], folder: Path, rate: float) -> Outcome:
    """Bundles that are bad, their manifests made to agree: none of them meets traffic."""
    serving, replicas, reasons, problems = world.alias() or world.digests[0], pids(REPLICA), {}, []
    with world.load(rate=rate) as load:
        load.wait_for(10)
        for name, bad in several.items():
            try:
                world.rollout(world.publish(bad, folder / name), budget=bad.budget or {})
                problems.append(f"{name} was rolled out")
                world.rollout(serving)
            except RolloutError as error:
                reasons[name] = str(error)
                if not re.search(f"is refused: .*{bad.reason}", reasons[name]):
                    problems.append(f"{name} was refused for another reason: {error}")
        load.wait_for(10)
    if world.alias() != serving or pids(REPLICA) != replicas:
        problems.append("the alias or the replicas are not those from before")
    problems += _none_failed(load.entries) + world.wrong(load.entries, serving)
    return _outcome("bad_bundles", problems, load.entries, bundles=len(several), refused=len(reasons), reasons=reasons)


def overload(world: World, seconds: float, knee_s: float, factor: float = 3.0) -> Outcome:
    """More requests than can be answered: as many as before are answered, the others refused at once.

    Args:
        seconds: of the overload, and until the first request is refused; 0: until then only, at whatever rate.
        knee_s: of the closed loop that finds out how many are answered.
        factor: times as many are then sent.
    """
    knee = ledger.figures(_loaded(world, knee_s, OK, connections=LOAD_CONNECTIONS), knee_s / 5)["per_s"]
    memory = held(REPLICA) + held(PROXY)
    entries = _loaded(world, seconds, REFUSED, rate=factor * knee)
    refused = [entry for entry in entries if entry.status == REFUSED]
    problems = world.wrong(entries) + _other_ends(entries, {OK, REFUSED, *LATE})
    if seconds and (offered := ledger.offered(entries)) < OFFERED * factor * knee:
        problems.append(f"the load generator offered only {offered:.0f} of {factor * knee:.0f} requests/s")
    after = [held(REPLICA) + held(PROXY)]
    give_up = time.monotonic() + (SETTLE_S if seconds >= SETTLE_S else 0)
    while after[-1] > FLAT * memory and time.monotonic() < give_up:
        time.sleep(1)
        after.append(held(REPLICA) + held(PROXY))
    found = ledger.figures(entries)
    return _outcome(
        "overload",
        problems,
        entries,
        knee_per_s=knee,
        goodput=round(found["per_s"] / knee, 3),
        refused=len(refused),
        late=sum(entry.status in LATE for entry in entries),
        refused_ms=ledger.latencies(refused),
        memory_mib=[round(each / 2**20) for each in (memory, max(after), after[-1])],
    )


def _loaded(world: World, seconds: float, status: int, **loop: Any) -> list[Entry]:
    """Load for so long, and until a request is answered with this status."""
    with world.load(**loop) as load:
        started = time.monotonic()
        load.wait_for(1, status)
        time.sleep(max(0.0, started + seconds - time.monotonic()))
    return load.entries


def scaling(world: World, most: int) -> Outcome:
    """From one connection to 24 and back: another replica answers soon after the step, and leaves after it.

    Args:
        most: replicas there may be; autoscaling has its default settings but for how soon they leave again.
    """
    digest, steady = world.alias() or world.digests[0], {"downscale_delay_s": ServeArgs().downscale_delay_s}
    world.rollout(digest, {"min_replicas": 1, "max_replicas": most, "downscale_delay_s": LOOK_BACK_S})
    with world.load(connections=1) as alone:
        wait_for_replicas(1)
        alone.wait_for(10)
        memory, first = [held(REPLICA)], pids(REPLICA)
        with world.load(connections=23) as step:
            wait_until(lambda: replicas().get("RUNNING", 0) > 1)
            up = time.monotonic()
            step.wait_for(240)
            several = pids(REPLICA)
            memory.append(held(REPLICA))
        wait_for_replicas(1)
        down = time.monotonic()
        alone.wait_for(10)
        memory.append(held(REPLICA))
    world.rollout(digest, steady)
    entries = [*alone.entries, *step.entries]
    began, ended = min(each.sent for each in step.entries), max(each.sent for each in step.entries)
    problems = [] if len(first) == 1 < len(several) else [f"replicas: {len(first)}, then {len(several)}"]
    problems += _none_failed(entries) + world.wrong(alone.entries, digest) + world.wrong(step.entries, digest)
    figures = {"most": most, "up_s": round(up - began, 1), "down_s": round(down - ended, 1)}
    return Outcome(
        "scaling",
        figures | {"memory_mib": [round(each / 2**20) for each in memory], "raw": ledger.figures(entries)},
        problems,
        {"one": alone.entries, "step": step.entries},
    )


def parity(world: World, histories: Histories, folder: Path, tolerance: float = ledger.TOLERANCE) -> Outcome:
    """Each student's last answer over HTTP, by `dkt score`, and by the predictor.

    Args:
        tolerance: 0 where the members' arithmetic is exact (LightGBM).
    """
    digest = world.alias() or world.digests[0]
    hidden, queries = last_hidden(histories)
    names = [f"{user:06d}" for user in range(len(queries))]  # their order is that of the rows
    log = write_log(folder / "hidden.csv", hidden, names)
    out = str(folder / "scored.csv")
    settings = {"store": world.store, "bundle": digest, "out": out, "copies": str(world.cache)}
    scoring.run(scoring.ScoreConfig.model_validate({"data": {"path": str(log)}, "engine": "local", **settings}))
    lines = Path(out).read_text().splitlines()[1:]
    job = [np.array([float(line.split(",")[1])]) for line in lines]
    with replace(world, queries=queries).load(connections=8) as load:
        load.wait_for(len(queries))
    oracle = [each.probability for each in world.oracles[digest].answer(queries)]
    off = max(abs(float(one[0]) - float(other[0])) for one, other in zip(job, oracle, strict=True))
    problems = _none_failed(load.entries) + ledger.wrong(load.entries, {digest: job}, tolerance)
    if off > tolerance:
        problems.append(f"dkt score is off by {off:.2g} from the predictor")
    asked = len({entry.body for entry in load.entries})
    if asked < len(queries):
        problems.append(f"{asked} of {len(queries)} students were asked for")
    return _outcome("parity", problems, load.entries, students=asked, tolerance=tolerance)


def parity_exact(world: World, histories: Histories, folder: Path) -> Outcome:
    """LightGBM alone: its arithmetic is exact on every path."""
    digest, only = world.alias() or world.digests[0], alone(world, "lightgbm", folder / "alone")
    only.rollout(only.digests[0])
    try:
        return parity(only, histories, folder, tolerance=0.0)
    finally:
        world.rollout(digest)


def _outcome(
    name: str, problems: list[str], entries: Sequence[Entry], users: Sequence[Entry] = (), **figures: Any
) -> Outcome:
    """With the figures of the raw requests, and of the client's where there is one."""
    told = figures | {"raw": ledger.figures(entries)} | ({"client": ledger.figures(users)} if users else {})
    return Outcome(name, told, problems, {"raw": entries} | ({"client": users} if users else {}))


def _none_failed(entries: Sequence[Entry]) -> list[str]:
    return _other_ends(entries, {OK})


def _other_ends(entries: Sequence[Entry], expected: set[int]) -> list[str]:
    others = [entry for entry in entries if entry.status not in expected]
    shown = [f"request {entry.request} ended with {entry.status}: {entry.error}" for entry in others[:5]]
    return [f"{len(others)} of {len(entries)} requests failed", *shown] if others else []


def stray(entries: Sequence[Entry], kills: Sequence[Kill]) -> list[Entry]:
    """Requests that were on their way during none of these kills."""
    return [e for e in entries if not any(e.sent < each.before and e.answered > each.after for each in kills)]


def _failures(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Requests that failed, and those of them with an HTTP answer that says so."""
    failures = ledger.failed(entries)
    return failures, [entry for entry in failures if entry.status]
