"""What the serving benchmark asks for: requests drawn from logs, and a small bundle of simulated students."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from dkt_ray.data.ingest import DataConfig
from dkt_ray.data.query import Query
from dkt_ray.data.simulate import SimulateConfig
from dkt_ray.ensemble import member
from dkt_ray.ensemble.chain import Chain
from dkt_ray.features.dataset import Dataset
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines import prepare, simulate
from dkt_ray.registry import bundle
from dkt_ray.registry.store import Registry, resolve
from dkt_ray.serving.contract import PredictRequest
from dkt_ray.serving.requests import brought, query
from dkt_ray.storage import open_store
from dkt_ray.training.fit import TrainingData, fit

Body = dict[str, Any]
EVENT: Final = {"assessmentItemID": "question", "answerCode": "correct", "Timestamp": "timestamp"}
FAMILIES: Final[Mapping[str, tuple[Mapping[str, Any], int]]] = {  # settings and iterations of the small bundle
    "lightgbm": ({"num_leaves": 15, "min_data_in_leaf": 5}, 30),
    "lstm": ({"width": 16, "context": 64}, 1),
    "lstm_attention": ({"width": 16, "heads": 2, "context": 64}, 1),
    "saint": ({"width": 16, "heads": 2, "context": 64}, 1),
}


class Students(NamedTuple):
    """Whole histories, as events of the API."""

    events: list[list[dict[str, Any]]]

    @classmethod
    def read(cls, log: Path, split: Path | None = None, fold: str = "fold5") -> Students:
        """Those of a log in six columns, or of one fold of it by a file `userID,split`."""
        rows = pl.read_csv(log, infer_schema=False)
        if split is not None:
            chosen = pl.read_csv(split, infer_schema=False).filter(pl.col("split") == fold)
            rows = rows.join(chosen, on="userID", how="semi", maintain_order="left")
        known = rows.filter(pl.col("answerCode") != "-1").with_columns(pl.col("answerCode").cast(pl.Int8))
        ordered = known.sort("userID", "Timestamp", maintain_order=True).select("userID", *EVENT).rename(EVENT)
        groups = ordered.partition_by("userID", include_key=False)
        return cls([group.to_dicts() for group in groups if len(group) > 1])

    def bodies(self, count: int, targets: int = 1, seed: int = 0) -> list[Body]:
        """Requests at random moments of random students; the first target is the question that came next."""
        random = np.random.default_rng(seed)
        bank = self.bank
        found = []
        for student in random.integers(0, len(self.events), count):
            events = self.events[student]
            at = int(random.integers(1, len(events)))
            others = random.choice(bank, targets - 1).tolist()
            found.append(_body(events[:at], [events[at]["question"], *others]))
        return found

    def long(self, events: int, targets: int) -> Body:
        """One request with so many events and targets; where nobody answered so many, without times."""
        longest = max(self.events, key=len)
        chosen = np.resize(np.array(self.bank), targets).tolist()
        if len(longest) >= events:
            return _body(longest[-events:], chosen)
        untimed = [{name: event[name] for name in ("question", "correct")} for event in longest]
        return _body((untimed * (events // len(untimed) + 1))[:events], chosen)

    @property
    def bank(self) -> list[str]:
        """Every question that somebody answered."""
        return sorted({event["question"] for events in self.events for event in events})


def queries(bodies: Sequence[Body]) -> list[Query]:
    """What the API makes of requests."""
    requests = [PredictRequest.model_validate(body) for body in bodies]
    return [query(brought(request).past, request.targets) for request in requests]


def lengths(bodies: Sequence[Body]) -> dict[str, int]:
    """How long the histories of requests are."""
    events: npt.NDArray[np.int64] = np.array([len(body["history"]) for body in bodies])
    return {f"p{share}": int(np.percentile(events, share)) for share in (50, 90, 100)}


def add_source(parser: argparse.ArgumentParser) -> None:
    """The options that say which bundle is asked, and by whose requests."""
    parser.add_argument("--store", help="with the bundle; without it, a bundle is made of simulated students")
    parser.add_argument("--bundle", default="champion", help="digest or alias")
    parser.add_argument("--data", type=Path, help="log in six columns, from which requests are drawn")
    parser.add_argument("--split", type=Path, help="CSV userID,split: only students of --fold")
    parser.add_argument("--fold", default="fold5")


def source(options: argparse.Namespace, folder: Path) -> tuple[str, str, Path]:
    """Store, digest and log: those that are asked for, or made of simulated students."""
    if options.store is None:
        return small_bundle(folder / "small")
    if options.data is None:
        raise SystemExit("--store needs --data: a log in six columns, from which requests are drawn")
    return options.store, resolve(Registry(open_store(options.store)), options.bundle), options.data


def small_bundle(folder: Path) -> tuple[str, str, Path]:
    """A store with a bundle of four families that learned from simulated students for a moment.

    Returns:
        The store, the bundle's digest, and the log.
    """
    simulate.run(SimulateConfig(users=30, bank_fraction=0.05, out=str(folder / "logs")))
    log, store = folder / "logs" / "train_data.csv", str(folder / "store")
    prepare.run(prepare.PrepareConfig(store=store, data=DataConfig(path=str(log)), context=64, engine="local"))
    dataset = Dataset.open(open_store(store), "default")
    data = TrainingData(dataset.load().rows, None, dataset.state)
    members = {family: folder / "members" / family for family in FAMILIES}
    for family, (settings, iterations) in FAMILIES.items():
        members[family].mkdir(parents=True)
        model = fit(family, CATALOG[family].config(**settings), data, iterations=iterations).model
        member.save(model, members[family])
    provenance = bundle.Provenance(
        dataset=dataset.name,
        dataset_fingerprint=dataset.manifest.fingerprint,
        members={family: {"origin": "trained for a moment"} for family in FAMILIES},
    )
    chain = Chain.weighted(dict.fromkeys(FAMILIES, 1 / len(FAMILIES)))
    digest = bundle.build(folder / "bundle", dataset.state, members, chain, provenance)
    Registry(open_store(store)).publish(folder / "bundle", digest)
    return store, digest, log


def _body(events: Sequence[Mapping[str, Any]], targets: Sequence[str]) -> Body:
    return {"history": list(events), "targets": list(targets)}
