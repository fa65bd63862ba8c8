"""Part (c): latency of encoding one history with its targets, all default features."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

import numpy as np

from dkt_ray.data.history import Histories, Targets
from dkt_ray.data.query import Query, gather
from dkt_ray.data.simulate import SimulateConfig, simulate
from dkt_ray.features.encoder import EncoderConfig, EncoderState, encode, fit_histories

Rowwise = TypeVar("Rowwise", Histories, Targets)

EVENTS: Final = (20, 340, 1860, 10_000)
TARGETS: Final = (1, 100, 1000, 10_000)
QUICK: Final = ((20, 1), (340, 1), (340, 1000))
REPEATS, REPEAT_S = 5, 0.3
CLASS: Final = 300  # users of the class that the encoder is fitted on
PAUSE_MS: Final = 86_400_000


def measure(quick: bool) -> dict[str, float]:
    """Median over 5 repeats of the mean time of a call in ms, `encode_ms_EVENTSxTARGETS`."""
    histories = simulate(SimulateConfig(users=CLASS)).histories()
    state = fit_histories(histories, np.zeros(CLASS, np.int8), EncoderConfig())
    sizes = QUICK if quick else [(events, targets) for events in EVENTS for targets in TARGETS]
    found = {}
    for events, targets in sizes:
        past, asked = one_student(histories, state, events, targets)
        encode(past, asked, state)  # compiles the recursions
        found[f"encode_ms_{events}x{targets}"] = _median_ms(partial(encode, past, asked, state))
    return found


def one_student(histories: Histories, state: EncoderState, events: int, targets: int) -> tuple[Histories, Targets]:
    """One history that asks for the first questions of the catalogue (over again where there are not enough).

    The events are the first ones of the class's longest history; one that is too short starts over a day later.
    """
    longest = histories.select(np.array([int(np.argmax(histories.lengths))]))
    assert longest.timestamp is not None
    rows = np.arange(events) % longest.rows
    again = np.arange(events) // longest.rows * (int(np.ptp(longest.timestamp)) + PAUSE_MS)
    catalogue = state.questions["question"].to_pylist()
    query = Query(
        question=longest.question.take(rows).strings().tolist(),
        correct=longest.correct[rows].tolist(),
        timestamp=(longest.timestamp[rows] + again).tolist(),
        target=(catalogue * (targets // len(catalogue) + 1))[:targets],
    )
    past, asked = gather([query])
    return _described(past, state), _described(asked, state)


def _described(rows: Rowwise, state: EncoderState) -> Rowwise:
    test, concepts = state.describe(rows.question)
    return replace(rows, test=test, concepts=concepts)


def _median_ms(call: Callable[[], object]) -> float:
    """Median over the repeats of the mean time of as many calls as fit into a repeat."""
    started = time.perf_counter()
    call()
    calls = max(1, int(REPEAT_S / (time.perf_counter() - started)))
    means = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        means.append(1000 * (time.perf_counter() - started) / calls)
    return round(statistics.median(means), 3)
