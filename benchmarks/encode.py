"""Latency of encoding one history of 340 events, all features, with 1 and with 1,000 targets; the last line is JSON."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from dkt_ray.data.history import Histories, Targets
from dkt_ray.data.query import Query, gather
from dkt_ray.data.simulate import SimulateConfig, simulate
from dkt_ray.features.encoder import EncoderConfig, EncoderState, encode, fit_histories

Rowwise = TypeVar("Rowwise", Histories, Targets)
EVENTS, REPEATS, CALLS = 340, 5, 40


def median_ms(call: Callable[[], object]) -> float:
    """Median over 5 repeats of the mean time of 40 calls."""
    means = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        means.append(1000 * (time.perf_counter() - started) / CALLS)
    return round(statistics.median(means), 3)


def fitted() -> tuple[Histories, EncoderState]:
    """A simulated class of 300 and the encoder fitted on it."""
    histories = simulate(SimulateConfig(users=300)).histories()
    return histories, fit_histories(histories, np.zeros(len(histories.users), np.int8), EncoderConfig())


def one_student(histories: Histories, state: EncoderState, targets: int) -> tuple[Histories, Targets]:
    """One history of 340 events that asks for the first `targets` questions of the catalogue."""
    longest = int(np.argmax(histories.lengths))
    events = histories.select(np.array([longest])).head(np.array([EVENTS]))
    assert events.rows == EVENTS
    catalogue = state.questions["question"].to_pylist()
    query = Query(
        question=events.question.strings().tolist(),
        correct=events.correct.tolist(),
        timestamp=events.timestamp.tolist() if events.timestamp is not None else None,
        target=(catalogue * (targets // len(catalogue) + 1))[:targets],
    )
    past, asked = gather([query])
    return _described(past, state), _described(asked, state)


def _described(rows: Rowwise, state: EncoderState) -> Rowwise:
    test, concepts = state.describe(rows.question)
    return replace(rows, test=test, concepts=concepts)


def main() -> None:
    """Measure and print."""
    histories, state = fitted()
    figures = {}
    for targets in (1, 1000):
        past, asked = one_student(histories, state, targets)
        encode(past, asked, state)  # compiles the recursions
        figures[f"encode_{EVENTS}x{targets}_ms"] = median_ms(lambda past=past, asked=asked: encode(past, asked, state))
    environment = {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    print(json.dumps({"benchmark": "encode", "environment": environment} | figures))


if __name__ == "__main__":
    main()
