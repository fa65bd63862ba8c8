"""`dkt runs`: the runs of a store at a glance: data, families, trials, best member, ensemble, what is published."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.errors import StorageError
from dkt_ray.metrics import Estimate
from dkt_ray.pipelines import trained
from dkt_ray.registry.store import MANIFEST
from dkt_ray.storage import Store, open_store
from dkt_ray.storage.store import Stored

logger = logging.getLogger(__name__)

FOLDER: Final = "runs"
TRIALS: Final = ("trials.parquet", "automl/trials.parquet")  # of `dkt tune`, else of `dkt automl`
HEAD: Final = ("run", "dataset", "families", "trials", "best member", "ensemble", "bundle", "size", "changed (UTC)")
DECIDED_BY: Final = ("family", "config", "dataset", "auc")  # two members that agree in this are one
_READERS: Final = 8  # runs that are read at the same time: in a bucket, each read waits
_DIGEST: Final = 12  # characters of a digest in the table


class RunsConfig(Config):
    """Settings of `dkt runs`."""

    positional: ClassVar[str | None] = "store"

    store: str = "data/store"
    """Folder or s3://bucket/prefix."""
    limit: int | None = Field(default=None, ge=1)
    """Most runs to list, the newest first; unset: all."""


@dataclass(frozen=True)
class Run:
    """What is known of a run; its parts come one after another, and those that are not there yet are empty."""

    name: str
    dataset: str | None
    """Its name, or, where no dataset of the store has these data any more, their fingerprint."""
    families: list[str]
    trials: dict[str, int]
    """How many ended in which way (finished, stopped, failed)."""
    members: dict[str, float | None]
    """Out-of-fold AUROC per member; of a model of `dkt train`, that of its fold."""
    ensemble: Estimate | None
    """Its AUROC, with its interval."""
    bundle: str | None
    """Digest of the bundle that was published of the run as it is."""
    aliases: list[str]
    """That point to the bundle."""
    bytes: int
    changed: str
    """When something in it was last written, UTC, ISO 8601."""

    @property
    def best(self) -> str | None:
        """The member of the highest AUROC."""
        known = {name: auc for name, auc in self.members.items() if auc is not None}
        return max(known, key=known.__getitem__, default=None)


@dataclass(frozen=True)
class Surroundings:
    """What the rest of the store says of runs."""

    datasets: Mapping[str, str]  # fingerprint -> name
    bundles: Mapping[str, Mapping[str, Any]]  # digest -> provenance
    aliases: Mapping[str, Sequence[str]]  # digest -> those that point to it


def run(config: RunsConfig) -> dict[str, Any]:
    """List the runs of a store, the newest first; damaged ones are named and left out.

    Returns:
        store, runs (each as a `Run`, with `best`).
    """
    store = open_store(config.store)
    found = _files(store.details(FOLDER))
    newest = sorted(found, key=lambda name: (max(file.changed for file in found[name]), name), reverse=True)
    around = surroundings(store) if found else Surroundings({}, {}, {})
    with ThreadPoolExecutor(_READERS) as pool:
        read = list(pool.map(lambda name: _read(store, name, found[name], around), newest[: config.limit]))
    runs = [each for each in read if each is not None]
    if runs:
        logger.info("%d of %d runs of %s\n%s", len(runs), len(found), store.url, table(runs))
    else:
        logger.info("no runs in %s yet: make one with dkt tune --set store=%s", store.url, config.store)
    return {"store": store.url, "runs": [asdict(each) | {"best": each.best} for each in runs]}


def surroundings(store: Store) -> Surroundings:
    """Datasets, bundles and aliases of a store, a small read each."""
    datasets = [key for key in store.list("datasets") if key.count("/") == 2 and key.endswith("/manifest.json")]
    manifests = [key for key in store.list("bundles") if key.count("/") == 2 and key.endswith(f"/{MANIFEST}")]
    fingerprints = {key.split("/")[1]: _field(store, key, "fingerprint") for key in datasets}
    provenances = {key.split("/")[1]: _field(store, key, "provenance") for key in manifests}
    aliases: dict[str, list[str]] = defaultdict(list)
    for key in store.list("aliases"):
        if key.count("/") == 1 and (bundle := _field(store, key, "bundle")) is not None:
            aliases[bundle].append(key.split("/")[1].removesuffix(".json"))
    return Surroundings(
        {fingerprint: name for name, fingerprint in fingerprints.items() if fingerprint is not None},
        {digest: found for digest, found in provenances.items() if found is not None},
        aliases,
    )


def describe(store: Store, name: str, files: Sequence[Stored], around: Surroundings) -> Run:
    """What is known of a run.

    Args:
        store: that holds it.
        name: of the run.
        files: everything in its folder, keys relative to the store.
        around: what the store says of runs.
    """
    root = f"{FOLDER}/{name}"
    keys = {file.key.removeprefix(f"{root}/") for file in files}
    folder = store.child(root)
    members = {key.split("/")[1]: folder.read_json(key) for key in sorted(keys) if _is(key, "members", "member.json")}
    models = {key.split("/")[1]: folder.read_json(key) for key in sorted(keys) if _is(key, "trained", trained.DONE)}
    swept = next((key for key in TRIALS if key in keys), None)
    trials = None if swept is None else folder.read_table(swept, ["family", "status"])
    blend = folder.read_json("blend.json") if "blend.json" in keys else None
    facts = [*members.values(), *models.values()]
    families = {fact["family"] for fact in facts} | set(trials["family"].to_pylist() if trials is not None else ())
    data = facts[0]["dataset"] if facts else None
    named = {digest: around.bundles[digest] for digest in around.aliases if digest in around.bundles}
    bundle = None if blend is None else published(members, blend, named | dict(around.bundles))
    return Run(
        name=name,
        dataset=around.datasets.get(data, data) if data is not None else None,
        families=sorted(families),
        trials=dict(Counter(trials["status"].to_pylist())) if trials is not None else {},
        members={name: fact["auc"] for name, fact in (members or models).items()},
        ensemble=None if blend is None else blend["metrics"]["auc"],
        bundle=bundle,
        aliases=list(around.aliases.get(bundle, ())) if bundle is not None else [],
        bytes=sum(file.bytes for file in files),
        changed=max(file.changed for file in files).isoformat(timespec="seconds"),
    )


def published(
    members: Mapping[str, Mapping[str, Any]], blend: Mapping[str, Any], bundles: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """Digest of the bundle whose members and figures are those of a run.

    Args:
        members: member.json of each.
        blend: blend.json.
        bundles: provenance per digest.
    """
    for digest, provenance in bundles.items():
        figures, parts = provenance.get("metrics", {}), provenance.get("members", {})
        of_run = all(_same(members.get(name, {}), facts) for name, facts in parts.items())
        if of_run and figures | blend["metrics"] == figures:
            return digest
    return None


def table(runs: Iterable[Run]) -> str:
    """The runs as lines for a terminal."""
    rows = [HEAD, *map(_row, runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(run: Run) -> tuple[str, ...]:
    ended = run.trials.get("finished", 0) + run.trials.get("stopped", 0)
    best = "–" if run.best is None else f"{run.best} {run.members[run.best]:.4f}"
    return (
        run.name,
        run.dataset or "–",
        ", ".join(run.families) or "–",
        f"{ended} done, {run.trials.get('failed', 0)} failed" if run.trials else "–",
        best,
        _interval(run.ensemble),
        f"{run.bundle[:_DIGEST]} {', '.join(run.aliases)}".rstrip() if run.bundle else "–",
        _size(run.bytes),
        run.changed[:16].replace("T", " "),
    )


def _interval(found: Estimate | None) -> str:
    if found is None or found["value"] is None:
        return "–"
    ends = "" if found["low"] is None else f" ({found['low']:.4f} – {found['high']:.4f})"
    return f"{found['value']:.4f}{ends}"


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _same(member: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(member.get(name) == other.get(name) for name in DECIDED_BY)


def _read(store: Store, name: str, files: Sequence[Stored], around: Surroundings) -> Run | None:
    try:
        return describe(store, name, files, around)
    except (StorageError, KeyError) as error:
        what = f"one of its files has no {error}" if isinstance(error, KeyError) else error
        logger.warning("run %s is left out: %s; make it again, or remove it", name, what)
        return None


def _files(listed: Iterable[Stored]) -> dict[str, list[Stored]]:
    """The objects of each run."""
    found: dict[str, list[Stored]] = defaultdict(list)
    for each in listed:
        if each.key.count("/") > 1:
            found[each.key.split("/")[1]].append(each)
    return found


def _is(key: str, folder: str, name: str) -> bool:
    parts = key.split("/")
    return len(parts) == 3 and (parts[0], parts[2]) == (folder, name)


def _field(store: Store, key: str, name: str) -> Any:
    """A field of a stored JSON file; None, and a warning, where it cannot be read."""
    try:
        return store.read_json(key)[name]
    except (StorageError, KeyError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        logger.warning("%s is left out: %s", key, what)
        return None
