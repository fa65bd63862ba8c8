"""The batches of an epoch: in order, made ahead by one thread, and its errors reach the training loop."""

from __future__ import annotations

import threading
from dataclasses import fields

import numpy as np
import pytest
import torch

from dkt_ray.features.collate import batches, collate
from dkt_ray.models.lstm import Lstm, LstmConfig
from dkt_ray.models.network import Inputs
from dkt_ray.training import feed
from dkt_ray.training.feed import AHEAD, Part
from tests.contract import world as w


@pytest.fixture(scope="module")
def part() -> Part:
    data = w.World.of(w.students(12, seed=1, longest=24)).data
    network = Lstm(LstmConfig(context=8, width=4), Inputs.of(data.state))
    return Part.training(data.train, network, torch.device("cpu"), 0)


@pytest.fixture
def steps(part: Part) -> list[np.ndarray]:
    found = list(batches(part.segments, 64, np.random.default_rng(0)))
    assert len(found) > 2 * AHEAD
    return found


def test_the_batches_come_in_order(part, steps):
    for parts, batch in zip(steps, part.feed(steps), strict=True):
        alone = collate(part.flat, part.flat, parts, part.order)
        assert all(torch.equal(getattr(batch, each.name), getattr(alone, each.name)) for each in fields(batch))


def test_the_next_batches_are_made_while_one_is_used(part, steps, monkeypatch):
    made: list[str] = []
    enough = threading.Event()

    def slow_reader(*arguments):
        made.append(threading.current_thread().name)
        if len(made) == 1 + AHEAD:
            enough.set()
        return collate(*arguments)

    monkeypatch.setattr(feed, "collate", slow_reader)
    coming = part.feed(steps)
    next(coming)
    assert enough.wait(10), "nobody makes the next batches"
    assert len(made) == 1 + AHEAD, "memory holds one batch in use and AHEAD more"
    coming.close()
    assert {name.partition("_")[0] for name in made} == {"feed"}
    assert not any(thread.name in made for thread in threading.enumerate()), "the thread outlives the epoch"


def test_an_error_of_the_thread_reaches_the_loop(part, steps, monkeypatch):
    def broken(*_):
        raise MemoryError("not enough memory")

    monkeypatch.setattr(feed, "collate", broken)
    with pytest.raises(MemoryError, match="not enough"):
        next(part.feed(steps))


def test_no_step_is_no_batch(part):
    assert list(part.feed([])) == []
