"""(Ray) The figures of contenders in Ray workers, where the scores of members and of ensembles of them are made too.

Members lie once in the object store. This module imports little: a worker loads what it needs to unpickle a task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from dkt_ray.ensemble.choice import Members, Way
from dkt_ray.ensemble.methods import rank_mean
from dkt_ray.log import progress
from dkt_ray.pipelines.figures import Answers, Contender, Measured, Settings, model_figures

Floats = npt.NDArray[np.float64]


def member_contenders(shared: ray.ObjectRef[Members], names: Sequence[str]) -> dict[str, Contender]:
    """The members."""
    return {name: Contender("member", partial(_scores, shared, partial(_column, k))) for k, name in enumerate(names)}


def way_contenders(ways: Mapping[str, Way], shared: ray.ObjectRef[Members]) -> dict[str, Contender]:
    """Every way of combining all members, and the mean of their ranks; one member has none."""
    if len(ways) == 1:
        return {}
    of = {name: way.nested for name, way in ways.items()} | {"rank": _ranks}
    return {f"ensemble_{name}": Contender("method", partial(_scores, shared, make)) for name, make in of.items()}


def _scores(shared: ray.ObjectRef[Members], of: Callable[[Members], Floats]) -> Floats:
    return of(ray.get(shared))


def _column(k: int, members: Members) -> Floats:
    return members.p[:, k]


def _ranks(members: Members) -> Floats:
    return rank_mean(members.p)


def begin_measuring(
    answers: Answers, contenders: Iterable[Contender], how: Settings
) -> dict[Contender, ray.ObjectRef[Measured]]:
    """The figures of contenders, under way in Ray workers that leave a CPU to what else is done; on one CPU: none."""
    free = int(ray.cluster_resources().get("CPU", 1)) - 1
    if free < 1:
        return {}
    measure, rows, begun = ray.remote(_figures_after), ray.put(answers), dict[Contender, ray.ObjectRef[Measured]]()
    last = deque[Any]([None] * free, maxlen=free)
    for contender in contenders:
        begun[contender] = measure.remote(last[0], rows, contender, how)
        last.append(begun[contender])
    return begun


def _figures_after(other: Measured | None, answers: Answers, contender: Contender, how: Settings) -> Measured:
    return model_figures(answers, contender, how)


def measure_in_parallel(
    answers: Answers,
    contenders: Mapping[str, Contender],
    how: Settings,
    begun: Mapping[Contender, ray.ObjectRef[Measured]],
) -> dict[str, Measured]:
    """The figures of every contender, of which some are `begun`, a Ray task each."""
    measure, rows = ray.remote(model_figures), ray.put(answers)
    waiting = {
        begun[contender] if contender in begun else measure.remote(rows, contender, how): name
        for name, contender in contenders.items()
    }
    models = {}
    with progress("measure models", len(contenders)) as lines:
        while waiting:
            (done,), _ = ray.wait(list(waiting))
            name = waiting.pop(done)
            models[name] = ray.get(done)
            lines.advance(note=name)
    return {name: models[name] for name in contenders}
