"""What a reliability run breaks: a service, two bundles that it may serve, and what each of them must answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from benchmarks import ledger, serving_requests
from benchmarks.ledger import Entry
from benchmarks.load import Load, Plan
from benchmarks.serving_requests import Students
from dkt_ray.data.history import Coded, Histories
from dkt_ray.data.query import Query
from dkt_ray.ensemble.chain import Chain
from dkt_ray.registry import bundle
from dkt_ray.registry.cache import local_copy
from dkt_ray.registry.store import Registry, resolve
from dkt_ray.serving import rollback, rollout
from dkt_ray.serving.predictor import Predictor
from dkt_ray.serving.requests import canonical
from dkt_ray.storage import open_store
from tests import bundles
from tests.bad_bundles import Bad, make

FAST: Mapping[str, Any] = {"num_cpus": 0.25, "min_replicas": 2, "max_replicas": 2, "graceful_shutdown_s": 5.0}
WEIGHTS = ({"lightgbm": 0.6, "lstm_attention": 0.4}, {"lightgbm": 0.1, "lstm_attention": 0.9})
START_S = 400.0  # patience only, also with a machine that has no time
# These bundles are what they are.
UNJUDGED: Mapping[str, Any] = {"gate": False, "verify_timeout_s": START_S, "trial": {"watch_s": 0}}
BODIES = 200  # different requests of a real world


@dataclass(frozen=True)
class World:
    """Two published bundles, their oracles, and requests that tell them apart."""

    store: str
    cache: Path
    folders: Mapping[str, Path]  # digest -> the bundle as it was built
    oracles: Mapping[str, Predictor]
    queries: Sequence[Query]
    expected: Mapping[str, Sequence[npt.NDArray[np.float64]]]  # digest -> the probabilities of each query
    port: int
    deadline_s: float = 15.0  # of a client's call

    @classmethod
    def of(cls, store: str, cache: Path, folders: Mapping[str, Path], queries: Sequence[Query], port: int) -> World:
        """Publish bundles and ask their predictors."""
        for digest, folder in folders.items():
            Registry(open_store(store)).publish(folder, digest)
        oracles = {digest: Predictor.load(folder, digest) for digest, folder in folders.items()}
        expected = {digest: [each.probability for each in one.answer(queries)] for digest, one in oracles.items()}
        return cls(store, cache, folders, oracles, queries, expected, port)

    @property
    def digests(self) -> list[str]:
        """The bundles."""
        return list(self.folders)

    @property
    def url(self) -> str:
        """Address of the service."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The queries as requests."""
        return [body_of(query) for query in self.queries]

    @property
    def registry(self) -> Registry:
        """Where the bundles are."""
        return Registry(open_store(self.store))

    def alias(self) -> str | None:
        """The bundle that should serve."""
        entry = self.registry.alias("champion")
        return entry.bundle if entry else None

    def other(self) -> str:
        """The bundle that does not serve."""
        return next(digest for digest in self.digests if digest != self.alias())

    def rollout(self, digest: str, replicas: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """`dkt rollout`, by default with two replicas that start fast."""
        settings = {"store": self.store, "bundle": digest, "port": self.port, "timeout_s": START_S} | more
        arguments = FAST | {"cache": str(self.cache)} | dict(replicas or {})
        return rollout.run(rollout.RolloutConfig(**{**UNJUDGED, **settings}, replicas=arguments))

    def rollback(self) -> dict[str, Any]:
        """`dkt rollback`."""
        settings = {"store": self.store, "port": self.port, "timeout_s": START_S}
        return rollback.run(rollback.RollbackConfig(**settings))

    def publish(self, bad: Bad, folder: Path) -> str:
        """Publish a damaged copy of the bundle that serves; gives its digest."""
        digest = make(bad, self.folders[self.alias() or self.digests[0]], folder)
        self.registry.publish(folder, digest)
        return digest

    def load(self, **loop: Any) -> Load:
        """Requests that never cease until the block ends; see `Plan`."""
        return Load(Plan(self.port, self.bodies, **loop))

    def wrong(self, entries: Sequence[Entry], *digests: str) -> list[str]:
        """Answers that are not those of exactly one of these bundles (none named: of the world's)."""
        return ledger.wrong(entries, {digest: self.expected[digest] for digest in digests or self.digests})


def body_of(query: Query) -> dict[str, Any]:
    """A query as a request; what it does not know, the request leaves out."""
    rows = len(query.question)
    events = [
        {"question": question, "correct": int(correct)} | described
        for question, correct, described in zip(
            query.question, query.correct, _described(query.test, query.concepts, rows), strict=True
        )
    ]
    if query.timestamp is not None:
        events = [event | {"timestamp": time} for event, time in zip(events, query.timestamp, strict=True)]
    more = _described(query.target_test, query.target_concepts, len(query.target))
    targets = [{"question": name} | each if each else name for name, each in zip(query.target, more, strict=True)]
    return {"history": events, "targets": targets} | ({} if query.at is None else {"at": query.at})


def _described(test: Sequence[str] | None, concepts: Sequence[str] | None, rows: int) -> list[dict[str, Any]]:
    """Tests and concepts of questions as the API reads them."""
    none = [""] * rows
    return [
        ({"test": one} if one else {}) | ({"concepts": tags.split("_")} if tags else {})
        for one, tags in zip(test or none, concepts or none, strict=True)
    ]


def tiny(folder: Path, port: int) -> World:
    """A world that is made in seconds."""
    folders = {}
    for seed, weights in enumerate(WEIGHTS):
        members = bundles.save_members(folder / f"members{seed}", seed)
        folders[bundles.build(folder / f"bundle{seed}", members, weights)] = folder / f"bundle{seed}"
    histories = bundles.world().histories
    names, known = histories.question.strings(), bundles.world().state.questions["question"].to_pylist()
    queries = [
        Query(names[a:b].tolist(), histories.correct[a:b].tolist(), known[: 1 + user % 5])
        for user, (a, b) in enumerate(zip(histories.offsets[:20], histories.offsets[1:21], strict=True))
    ]
    return World.of(str(folder / "store"), folder / "cache", folders, queries, port)


def real(source: str, name: str, log: Path, split: Path | None, fold: str, folder: Path, port: int) -> World:
    """A bundle of a store, and the same members with equal weights; requests from a log (`benchmarks/serving.py`)."""
    registry = Registry(open_store(source))
    first = local_copy(registry, resolve(registry, name), folder / "copies")
    loaded = bundle.load(first)
    second, names = folder / "second", loaded.scorer.chain.members
    members = {each: first / "members" / each for each in names}
    chain = Chain.weighted(dict.fromkeys(names, 1 / len(names)))
    other = bundle.build(second, loaded.scorer.state, members, chain, loaded.manifest.provenance)
    asked = serving_requests.queries(Students.read(log, split, fold).bodies(BODIES))
    found = World.of(str(folder / "store"), folder / "cache", {loaded.digest: first, other: second}, asked, port)
    one, two = found.expected.values()
    apart = [index for index in range(BODIES) if np.abs(one[index] - two[index]).max() > ledger.APART]
    expected = {digest: [each[index] for index in apart] for digest, each in found.expected.items()}
    return replace(found, queries=[asked[index] for index in apart], expected=expected)


def alone(world: World, member: str, folder: Path) -> World:
    """A world with one bundle of one member only."""
    source = world.folders[world.digests[0]]
    loaded, members = bundle.load(source), {member: source / "members" / member}
    chain, provenance = Chain.weighted({member: 1.0}), loaded.manifest.provenance
    digest = bundle.build(folder, loaded.scorer.state, members, chain, provenance)
    return World.of(world.store, world.cache, {digest: folder}, world.queries, world.port)


def last_hidden(histories: Histories) -> tuple[Histories, list[Query]]:
    """Histories whose last answer is hidden, and the same as queries."""
    ends = histories.offsets[1:] - 1
    correct = histories.correct.copy()
    correct[ends] = -1
    columns = (histories.question, histories.test, histories.concepts)
    question, test, concepts = (column.strings().tolist() for column in columns)
    times = None if histories.timestamp is None else histories.timestamp.tolist()
    queries = [
        Query(
            question[start:end],
            correct[start:end].tolist(),
            [question[end]],
            test[start:end],
            concepts[start:end],
            None if times is None else times[start:end],
            [test[end]],
            [concepts[end]],
            None if times is None else times[end],
        )
        for start, end in zip(histories.offsets[:-1].tolist(), ends.tolist(), strict=True)
    ]
    return replace(histories, correct=correct), queries


def histories_of(log: Path, users: int) -> Histories:
    """The first students of a log in six columns."""
    rows = pl.read_csv(log, infer_schema=False).filter(pl.col("answerCode") != "-1")
    first = rows["userID"].unique(maintain_order=True).head(users)
    rows = rows.filter(pl.col("userID").is_in(first.implode())).sort("userID", "Timestamp", maintain_order=True)
    lengths = rows.group_by("userID", maintain_order=True).len()
    times = rows["Timestamp"].str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ms")
    return Histories(
        users=lengths["userID"].to_numpy().astype(object),
        offsets=np.concatenate([[0], np.cumsum(lengths["len"].to_numpy())]).astype(np.int64),
        question=Coded.of(rows["assessmentItemID"].to_list()),
        test=Coded.of(rows["testId"].to_list()),
        concepts=Coded.of([canonical([tags]) for tags in rows["KnowledgeTag"].to_list()]),
        correct=rows["answerCode"].cast(pl.Int8).to_numpy(),
        timestamp=times.dt.timestamp("ms").to_numpy(),
    )
