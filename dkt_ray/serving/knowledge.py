"""`POST /v1/knowledge-state`: mastery per concept and per head, now and after each of the last answers.

Mastery is the mean probability of a right answer over at most three probe questions. All moments are scored in one pass
over the history: a probe of a past moment is a target that stands after the rows until then.

Legend: S moments (after each of the last answers, then now), Q probe questions, G concepts or heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from dkt_ray.data.query import Query
from dkt_ray.features.structure import decompose
from dkt_ray.models.base import Probabilities
from dkt_ray.registry.catalogue import Catalogue
from dkt_ray.schema import CONCEPT_SEPARATOR
from dkt_ray.serving.contract import MAX_TARGETS, FieldError, KnowledgeRequest
from dkt_ray.serving.requests import of_known

Probes = Mapping[str, Sequence[str]]  # concept or head -> questions that stand for it


class Plan(NamedTuple):
    """What is asked for."""

    concepts: Probes
    heads: Probes
    questions: list[str]  # [Q] all probes, each once
    steps: int  # S - 1


def plan(request: KnowledgeRequest, past: Query, catalogue: Catalogue) -> Plan:
    """Choose concepts, heads and their probes.

    Raises:
        FieldError: a concept is unknown, or the probes of all moments are too many.
    """
    concepts = catalogue.probes(_concepts(request, past, catalogue))
    heads = catalogue.head_probes(_shown_heads(catalogue, past.question, request.limit))
    questions = list(dict.fromkeys(chain.from_iterable([*concepts.values(), *heads.values()])))
    steps = min(request.steps, len(past.question))
    if len(questions) * (steps + 1) > MAX_TARGETS:
        less = MAX_TARGETS // len(questions) - 1
        pointer, remedy = ("/steps", f"lower it to {less}") if less > 0 else ("/limit", "lower it")
        asked = f"{len(questions)} probe questions x {steps + 1} moments"
        raise FieldError(pointer, f"{asked}; expected at most {MAX_TARGETS} together: {remedy}")
    return Plan(concepts, heads, questions, steps)


def query(past: Query, wanted: Plan) -> Query:
    """All probes at all moments: where `at` is given, those of the past are asked when the answer before them was."""
    length, probes = len(past.question), len(wanted.questions)
    asked = of_known(past, wanted.questions * (wanted.steps + 1))
    seen = [*range(length - wanted.steps + 1, length + 1), length]
    at = asked.at
    if asked.timestamp and isinstance(at, int):
        at = np.repeat([*(asked.timestamp[rows - 1] for rows in seen[:-1]), at], probes).tolist()
    return replace(asked, seen=np.repeat(seen, probes).tolist(), at=at)


def state(wanted: Plan, probability: Probabilities) -> dict[str, Any]:
    """The fields of `KnowledgeResponse` besides those of every reply.

    Args:
        probability: [S x Q] in the order of `query`.
    """
    moments = probability.reshape(wanted.steps + 1, -1)
    parts = {}
    for name, word, probes in (("concepts", "concept", wanted.concepts), ("heads", "head", wanted.heads)):
        found = mastery(probes, wanted.questions, moments).T
        rows = zip(probes.items(), found[:, -1].tolist(), found[:, :-1].tolist(), strict=True)
        parts[name] = [
            {word: key, "mastery": now, "probes": list(questions)} | ({"trajectory": past} if past else {})
            for (key, questions), now, past in rows
        ]
    return {"steps": wanted.steps} | parts


def mastery(probes: Probes, questions: Sequence[str], probability: Probabilities) -> Probabilities:
    """Mean probability over the probes of each concept or head, [S, G].

    Args:
        questions: [Q], all probes among them.
        probability: [S, Q] of them.
    """
    if not probes:
        return np.empty((len(probability), 0))
    at = {question: index for index, question in enumerate(questions)}
    counts = np.array([len(several) for several in probes.values()])
    columns = [at[question] for several in probes.values() for question in several]
    return np.add.reduceat(probability[:, columns], np.cumsum(counts) - counts, axis=1) / counts


def _concepts(request: KnowledgeRequest, past: Query, catalogue: Catalogue) -> Sequence[str]:
    if request.concepts is None:
        return _shown_concepts(past, catalogue, request.limit)
    known_concepts(request.concepts, catalogue)
    return request.concepts


def known_concepts(concepts: Sequence[str], catalogue: Catalogue) -> None:
    """Refuse concepts that the model does not know.

    Raises:
        FieldError: the first of them.
    """
    known = catalogue.probes(concepts)
    for index, concept in enumerate(concepts):
        if concept not in known:
            raise FieldError(f"/concepts/{index}", "is not a concept of the model; GET /v1/questions lists them")


def _shown_concepts(past: Query, catalogue: Catalogue, limit: int) -> list[str]:
    """Those of the history, the latest first, then the most answered ones."""
    own = catalogue.concepts_of
    rows = zip(past.question, past.concepts or [""] * len(past.question), strict=True)
    met = [tag for question, tags in rows for tag in (tags.split(CONCEPT_SEPARATOR) if tags else own.get(question, []))]
    known = catalogue.probes(dict.fromkeys(reversed(met)))
    return list(dict.fromkeys([*known, *catalogue.concepts]))[:limit]


def _shown_heads(catalogue: Catalogue, history: Sequence[str], limit: int) -> list[str]:
    met = catalogue.head_probes(dict.fromkeys(reversed(decompose(np.array(history, object))["head"].tolist())))
    return list(dict.fromkeys([*met, *catalogue.heads]))[:limit]
