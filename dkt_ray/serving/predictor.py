"""The predictor: one loaded bundle that answers requests and scores rows; no Ray, no training code."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dkt_ray.data.history import Histories, Targets
from dkt_ray.data.query import Query
from dkt_ray.data.windows import sees_from
from dkt_ray.ensemble.opinions import Ask, ask_all
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.registry import bundle
from dkt_ray.registry.bundle import Bundle, Manifest
from dkt_ray.registry.catalogue import Catalogue
from dkt_ray.registry.forgotten import Forgotten
from dkt_ray.registry.profile import Profile


class Predictor:
    """Scores with one immutable bundle; equal results one by one, in a batch, and over HTTP."""

    def __init__(self, loaded: Bundle) -> None:
        self._bundle = loaded

    @classmethod
    def load(cls, folder: Path, digest: str | None = None, verify: bool = True) -> Predictor:
        """Load a bundle's folder.

        Args:
            digest: what the bundle must be; None: whatever it is.
            verify: replay the golden requests too (file digests are always checked).

        Raises:
            BundleError: the bundle is damaged, incomplete, or does not answer as it did when it was made.
        """
        return cls((bundle.verify if verify else bundle.load)(folder, digest))

    @property
    def version(self) -> str:
        """Digest of the bundle."""
        return self._bundle.digest

    @property
    def members(self) -> tuple[str, ...]:
        """Members of the ensemble."""
        return self._bundle.scorer.chain.members

    @property
    def weights(self) -> Mapping[str, float]:
        """How much each member counts: parts of 1."""
        return self._bundle.scorer.chain.shares

    def weights_without(self, left_out: Collection[str]) -> Mapping[str, float]:
        """How much each of the others counts when some do not answer: those of `Chain.without`, which combined them."""
        return self._bundle.scorer.chain.without(left_out).shares

    def truncated(self, length: int, members: Iterable[str]) -> int:
        """How many of a history's oldest rows none of the given members' networks reads one by one; 0 without networks.

        Features still see them.
        """
        contexts = frozenset().union(*(self._bundle.scorer.members[name].contexts for name in members))
        return min((int(sees_from(np.array(length), context)) for context in contexts), default=0)

    @property
    def manifest(self) -> Manifest:
        """Where the bundle came from."""
        return self._bundle.manifest

    @property
    def catalogue(self) -> Catalogue:
        """The questions that the bundle knows."""
        return self._bundle.catalogue

    @property
    def profile(self) -> Profile | None:
        """What the training data looked like, where the bundle says so."""
        return self._bundle.profile

    def score(self, histories: Histories, targets: Targets) -> Scores:
        """Probability of a right answer to each target after its user's history; see `Scorer.score`."""
        return self._bundle.scorer.score(histories, targets)

    def score_rows(self, histories: Histories) -> Scores:
        """Score every hidden (-1) row of the histories, in their order."""
        return self._bundle.scorer.score_hidden(histories)

    def answer(self, queries: Sequence[Query], ask: Ask = ask_all) -> list[Scores]:
        """Score many requests in one pass; each gets what it would get alone; see `Scorer.score_queries`."""
        return self._bundle.scorer.score_queries(queries, ask)


def describe(predictor: Predictor, marked: Forgotten | None) -> dict[str, Any]:
    """What `GET /v1/models` says about the bundle."""
    provenance = predictor.manifest.provenance
    return {
        "model_version": predictor.version,
        "members": [
            {"family": name, **provenance.members.get(name, {}), "name": name, "weight": weight}
            for name, weight in predictor.weights.items()
        ],
        "metrics": provenance.metrics,
        "dataset": provenance.dataset,
        "dataset_fingerprint": provenance.dataset_fingerprint,
        "protocol_fingerprint": provenance.protocol_fingerprint,
        "packages": predictor.manifest.packages,
        "forgotten": marked and asdict(marked),
    }
