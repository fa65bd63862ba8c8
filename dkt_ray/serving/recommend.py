"""`POST /v1/recommend`: what to ask next, by how likely a right answer is or by what answering is expected to teach.

Legend: N candidates, K questions whose gain is compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np

from dkt_ray.data.query import Query
from dkt_ray.ensemble.scorer import Scores
from dkt_ray.registry.catalogue import Catalogue
from dkt_ray.serving.contract import MAX_ROWS, MAX_TARGETS, FieldError, RecommendRequest
from dkt_ray.serving.knowledge import Probes, known_concepts, mastery
from dkt_ray.serving.requests import of_known
from dkt_ray.serving.trace import Shown, current

RULE: Final = "v1"  # of the rules below; another one where they choose otherwise
COMPARED: Final = 32  # K at most: each is two histories to be read
PROBES_AT_MOST: Final = 16  # of one question, for the estimate of what a comparison costs

Answer = Callable[[Query], Awaitable[Scores]]
Fields = dict[str, Any]


class Gain(NamedTuple):
    """What answering a question is expected to change."""

    now: float  # mastery of the question's concepts before it
    rise: float  # expected mastery after it, less `now`


def candidates(request: RecommendRequest, past: Query, catalogue: Catalogue) -> list[str]:
    """[N] questions that may be recommended, the most answered first; just-seen ones are left out.

    Raises:
        FieldError: the band is none, or a concept is unknown.
    """
    low, high = request.band
    if low > high:
        raise FieldError("/band", "its first number is above its second; send [lowest, highest]")
    known_concepts(request.concepts or (), catalogue)
    events = len(past.question)
    seen = set(past.question[max(0, events - request.exclude_last) :])
    left = [row for row in catalogue.rows if row["question"] not in seen]
    if request.concepts is not None:
        wanted = set(request.concepts)
        left = [row for row in left if not wanted.isdisjoint(row["concepts"])]
    return [row["question"] for row in left[: min(MAX_TARGETS, MAX_ROWS - events)]]


async def recommended(
    request: RecommendRequest, past: Query, catalogue: Catalogue, answer: Answer
) -> tuple[Scores, Fields]:
    """The scores of the candidates, and the fields of `RecommendResponse` besides those of every reply."""
    scores, found = await _chosen(request, past, catalogue, answer)
    low, high = request.band
    asked = [item["question"] for item in found["recommendations"]]
    current().shown = Shown(f"{request.by} {low:g}-{high:g} {RULE}", found["candidates"], asked)
    return scores, found


async def _chosen(
    request: RecommendRequest, past: Query, catalogue: Catalogue, answer: Answer
) -> tuple[Scores, Fields]:
    questions = candidates(request, past, catalogue)
    scores = await answer(of_known(past, questions))
    order = np.argsort(np.abs(scores.probability - sum(request.band) / 2), kind="stable").tolist()
    if request.by == "band":
        chosen = order[: request.limit]
        reasons = [_about_band(float(scores.probability[index]), request.band) for index in chosen]
        items = _items(questions, chosen, reasons, scores, request, catalogue)
        return scores, {"candidates": len(questions), "recommendations": items}
    order = [index for index in order if catalogue.concepts_of[questions[index]]]
    compared = order[: max(1, min(COMPARED, MAX_ROWS // (2 * (len(past.question) + PROBES_AT_MOST))))]
    p = scores.probability[compared].tolist()
    gains, left_out = await _gains(past, [questions[index] for index in compared], p, catalogue, answer)
    best = sorted(range(len(compared)), key=lambda place: -gains[place].rise)[: request.limit]
    chosen = [compared[place] for place in best]
    concepts = [catalogue.concepts_of[questions[index]] for index in chosen]
    reasons = [_about_gain(gains[place], names) for place, names in zip(best, concepts, strict=True)]
    items = _items(questions, chosen, reasons, scores, request, catalogue)
    for item, place in zip(items, best, strict=True):
        item["gain"] = gains[place].rise
    scores = replace(scores, left_out=tuple(sorted({*scores.left_out, *left_out})))
    return scores, {"candidates": len(questions), "recommendations": items}


async def _gains(
    past: Query, questions: Sequence[str], p: Sequence[float], catalogue: Catalogue, answer: Answer
) -> tuple[list[Gain], set[str]]:
    """[K] expected gains, exact under the model, and the members that did not answer; all is asked at once."""
    probes = [_probes(question, catalogue) for question in questions]
    everything = list(dict.fromkeys(name for each in probes for several in each.values() for name in several))
    now = of_known(past, everything)
    asked = [now]
    for question, each in zip(questions, probes, strict=True):
        targets = list(dict.fromkeys(name for several in each.values() for name in several))
        asked += [_answered(now, question, right, targets) for right in (1, 0)]
    before, *after = await _all(asked, answer)
    gains = []
    for place, each in enumerate(probes):
        start = _mean(each, everything, before)
        right, wrong = (_mean(each, asked[1 + index].target, after[index]) for index in (2 * place, 2 * place + 1))
        gains.append(Gain(start, p[place] * right + (1 - p[place]) * wrong - start))
    return gains, {name for scores in (before, *after) for name in scores.left_out}


async def _all(queries: Sequence[Query], answer: Answer) -> list[Scores]:
    """All answers; where one fails, the others are not waited for and not scored any more."""
    tasks = [asyncio.ensure_future(answer(query)) for query in queries]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _probes(question: str, catalogue: Catalogue) -> Probes:
    """The probes of a question's concepts; the question itself is none where others are left."""
    probes = catalogue.probes(catalogue.concepts_of[question])
    return {concept: [name for name in several if name != question] or several for concept, several in probes.items()}


def _answered(now: Query, question: str, right: int, targets: Sequence[str]) -> Query:
    """The same student after one more answer, given when the targets are shown or else with the last one."""
    times = None
    if now.timestamp or isinstance(now.at, int):
        known = now.timestamp or []
        times = [*known, max([*known[-1:], *([now.at] if isinstance(now.at, int) else [])])]
    return replace(
        now,
        question=[*now.question, question],
        correct=[*now.correct, right],
        test=[*(now.test or ()), ""],
        concepts=[*(now.concepts or ()), ""],
        timestamp=times,
        target=targets,
    )


def _mean(probes: Probes, questions: Sequence[str], scores: Scores) -> float:
    return float(mastery(probes, questions, scores.probability[None]).mean())


def _items(
    questions: Sequence[str],
    chosen: Sequence[int],
    reasons: Sequence[str],
    scores: Scores,
    request: RecommendRequest,
    catalogue: Catalogue,
) -> list[Fields]:
    low, high = request.band
    rows = zip(chosen, scores.probability[chosen].tolist(), scores.spread[chosen].tolist(), reasons, strict=True)
    return [
        {
            "question": questions[index],
            "concepts": catalogue.concepts_of[questions[index]],
            "probability": probability,
            "spread": apart,
            "in_band": low <= probability <= high,
            "reason": reason,
        }
        for index, probability, apart, reason in rows
    ]


def _about_band(p: float, band: tuple[float, float]) -> str:
    low, high = band
    where = "below" if p < low else "above" if p > high else "within"
    return f"{p:.0%} likely to be answered right: {where} the wanted {low:.0%} to {high:.0%}"


def _about_gain(gain: Gain, concepts: Sequence[str]) -> str:
    way = "raise" if gain.rise >= 0 else "lower"
    subject = f"concept {concepts[0]}" if len(concepts) == 1 else f"concepts {', '.join(concepts)}"
    points = f"{100 * abs(gain.rise):.1f} points"
    return f"answering it is expected to {way} mastery of {subject} by {points}, from {gain.now:.0%}"
