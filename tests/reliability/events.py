"""The log of events under writers, kills and deletions: nothing is lost, nothing is there twice, nothing is left."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import polars as pl

from dkt_ray import Client
from dkt_ray.client import RefusedError
from dkt_ray.events.sql import open_events
from dkt_ray.pipelines import export, forget, prepare
from dkt_ray.privacy import Privacy
from tests.reliability.forgetting import files, of_user, places, proven, traces
from tests.reliability.processes import REPLICA, kill, pids, wait_for_another, wait_until
from tests.reliability.scenarios import Outcome
from tests.reliability.world import World

CHUNK = 20  # events of one request
AGAIN = 0.2  # share of the requests that are sent a second time
START_MS = 1_700_000_000_000
AT_ONCE = 8  # connections of a load
GONE = 410


def writers(world: World, url: str, count: int, each: int, folder: Path, seed: int = 0) -> Outcome:
    """Writers that send their events out of order and some twice, while a replica is killed."""
    questions = _questions(world)
    sent = [[_event(writer, number, questions) for number in range(each)] for writer in range(count)]
    acknowledged, problems = Counter[str](), []
    half = threading.Event()

    def write(writer: int) -> None:
        chance = random.Random(f"{seed} {writer}")
        chunks = [sent[writer][start : start + CHUNK] for start in range(0, each, CHUNK)]
        chance.shuffle(chunks)
        with Client(world.url, deadline_s=world.deadline_s) as client:
            for number, chunk in enumerate(chunks):
                for _ in range(1 + (chance.random() < AGAIN)):
                    told = client.record(chance.sample(chunk, len(chunk)))
                    acknowledged.update(added=told.added, repeated=told.repeated)
                if number >= len(chunks) // 2:
                    half.set()

    started = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(write, writer) for writer in range(count)]
        wait_until(lambda: half.is_set() or all(each.done() for each in running))
        before = pids(REPLICA)
        fired = kill(min(before))
        at_work = sum(not each.done() for each in running)
        wait_for_another(REPLICA, before)
        problems += [f"a writer ended with {error!r}" for each in running if (error := each.exception())]
    if not at_work:
        problems.append("every writer was done when the replica was killed: the kill proves nothing")
    seconds = time.monotonic() - started
    wanted = {_kept_id(event["event_id"]): event for events in sent for event in events}
    problems += once(_logged(url), wanted, "the log")
    told = export.run(export.ExportConfig(events=url, store=str(folder / "store")))
    problems += once(_exported(folder / "store"), wanted, "the export")
    figures = {
        "events": len(wanted),
        "seconds": round(seconds, 1),
        "per_s": round(len(wanted) / seconds, 1),
        "kill_fired": not fired.before < fired.after,
        "writers_at_work": at_work,
        "exported": told,
        **acknowledged,
    }
    return Outcome("writers", figures, problems)


def once(found: Iterable[tuple[str, str, int, int]], wanted: Mapping[str, Mapping[str, Any]], where: str) -> list[str]:
    """What is wrong with the events of a place: missing, twice, unknown, or of other content.

    Args:
        found: event id, question, correct, answered_at of each row.
        wanted: event id -> the event as it was sent.
    """
    problems, seen = [], Counter[str]()
    for event_id, question, correct, answered_at in found:
        seen[event_id] += 1
        event = wanted.get(event_id)
        if event is None:
            problems.append(f"{where} holds an event that nobody sent")
        elif (question, correct, answered_at) != (event["question"], event["correct"], event["answered_at"]):
            problems.append(f"{where}: event {event['event_id']} has other content")
    problems += [f"{where} holds an event {times} times" for times in seen.values() if times > 1]
    missing = len(wanted.keys() - seen.keys())
    return [*problems[:10], *([f"{where} has lost {missing} events"] if missing else [])]


def stored_users(world: World, url: str, users: int, events: int, rate: float, seconds: float) -> Outcome:
    """Users with long histories: an answer of each comes in and the next question is asked for, in an open loop."""
    questions, names = _questions(world), [f"stored-{number}" for number in range(users)]
    with Client(world.url, deadline_s=world.deadline_s) as client:
        for name in names:
            client.record(_event(name, number, questions) for number in range(events))

        def turn(number: int, due: float) -> tuple[float, float]:
            time.sleep(max(0.0, due - time.monotonic()))
            name = names[number % users]
            client.record([_event(name, events + number, questions)])
            recorded = time.monotonic()
            client.predict([questions[number % len(questions)]], user_id=name)
            return 1000 * (recorded - due), 1000 * (time.monotonic() - due)

        for number in range(2 * users):  # the caches of both replicas
            turn(number, time.monotonic())
        first = time.monotonic() + 0.5
        with ThreadPoolExecutor(AT_ONCE) as pool:
            turns = [
                pool.submit(turn, 2 * users + number, first + number / rate) for number in range(int(rate * seconds))
            ]
            taken = np.array([each.result() for each in turns])
        kept = {name: client.user(name).answers for name in names}
    problems = [] if sum(kept.values()) == users * events + 2 * users + len(turns) else [f"answers were lost: {kept}"]
    figures = {"turns": len(turns), "rate": rate, "events": events} | _percentiles(taken)
    return Outcome("stored_users", figures, problems)


def forgotten(world: World, url: str, count: int, folder: Path) -> Outcome:
    """Users who are deleted: no trace in database and logs, and after compaction none in exports and prepared data.

    The control: users who stay are found in each place, and in the logs the id of a request that names a deleted one.
    """
    questions, store, answers = _questions(world), folder / "store", 5
    marked = [f"canary-{uuid4().hex}" for _ in range(count)]
    kept = [f"other-{uuid4().hex}" for _ in range(40)]
    export_of = export.ExportConfig(events=url, store=str(store))
    dataset = prepare.PrepareConfig(
        store=str(store), data={"path": f"{store}/exports/events/*.parquet", "folds": 2, "test_fraction": 0.2}
    )
    privacy = Privacy.of_environment()
    gone, stay = ([word for name in names for word in of_user(privacy, name, answers)] for names in (marked, kept))

    def look(wanted: Sequence[str]) -> dict[str, int]:
        return traces(wanted, places(Path(url.removeprefix("sqlite:///")), _logs(), store))

    with Client(world.url, deadline_s=world.deadline_s) as client:
        client.record(_event(name, number, questions) for name in [*marked, *kept] for number in range(answers))
        for name in marked:
            client.predict([questions[0]], user_id=name)
        export.run(export_of)
        prepare.run(dataset)
        planted = look(gone)
        deleted = [client.forget(name) for name in marked]
        refused = sum(_is_gone(client, name) for name in marked)
    stay.append(_request_id(world, marked[0], questions[0]))
    wait_until(lambda: traces(stay[-1:], {"logs": _logs()})["logs"] > 0)  # written a moment later
    after_delete = look(gone)
    forget.run(forget.ForgetConfig(events=url, store=str(store)))
    control, after_compaction = look(stay), look(gone)
    rows = sum(sum(each.removed.values()) for each in deleted)
    figures = {
        "users": count,
        "rows_removed": rows,
        "refused": refused,
        "planted": planted,
        "control": control,
        "after_delete": after_delete,
        "after_compaction": after_compaction,
    }
    problems = [f"none was planted: {place}" for place in ("database", "exports", "prepared") if not planted[place]]
    at_once = {place: after_delete[place] for place in ("database", "logs")}
    problems += proven({}, at_once, "DELETE") + proven(control, after_compaction, "compaction")
    if refused != count:
        problems.append(f"{count - refused} of {count} deleted users are answered for")
    return Outcome("forgotten", figures, problems)


def _questions(world: World) -> list[str]:
    return sorted({target for query in world.queries for target in query.target})


def _event(user: str | int, number: int, questions: Sequence[str]) -> dict[str, Any]:
    return {
        "event_id": f"{user}-{number}",
        "user_id": f"user-{user}" if isinstance(user, int) else user,
        "question": questions[number % len(questions)],
        "correct": number * 7 % 3 % 2,
        "answered_at": START_MS + 1000 * number,
    }


def _kept_id(event_id: str) -> str:
    """As the API keeps it."""
    return Privacy.of_environment().event(event_id)


def _logged(url: str) -> Iterator[tuple[str, str, int, int]]:
    events, after = open_events(url), 0
    try:
        while rows := events.log.read(after, 10_000):
            after = rows[-1].sequence
            for _, event in rows:
                assert event.correct is not None
                yield event.event_id, event.question, event.correct, event.answered_at
    finally:
        events.close()


def _exported(store: Path) -> Iterator[tuple[str, str, int, int]]:
    for part in sorted(store.glob("exports/events/*.parquet")):
        rows = pl.read_parquet(part).select(
            "eventID", "assessmentItemID", pl.col("answerCode").cast(int), pl.col("Timestamp").dt.timestamp("ms")
        )
        yield from rows.iter_rows()


def _percentiles(taken: np.ndarray[Any, Any]) -> dict[str, float]:
    found = {}
    for name, column in zip(("append", "append_and_predict"), taken.T, strict=True):
        for share in (50, 99, 100):
            found[f"{name}_p{share}_ms"] = round(float(np.percentile(column, share)), 1)
    return found


def _is_gone(client: Client, name: str) -> bool:
    try:
        client.predict(["any"], user_id=name)
    except RefusedError as error:
        return error.status == GONE
    return False


def _request_id(world: World, user: str, question: str) -> str:
    """Of a request that names a user, whatever is answered: it stands in the replica's log."""
    body = {"user_id": user, "targets": [question]}
    answer = httpx.post(f"{world.url}/v1/predict", json=body, timeout=world.deadline_s, trust_env=False)
    return answer.headers["x-request-id"]


def _logs() -> list[Path]:
    """Of Ray, its workers and replicas."""
    import ray

    return files(Path(ray._private.worker._global_node.get_session_dir_path()) / "logs")
