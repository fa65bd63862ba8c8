"""What a rollout is about to do: found by whoever comes after it, kept from whoever comes beside it."""

import pytest

from dkt_ray.errors import ConflictError, RolloutError
from dkt_ray.serving.intent import Intent, Intents
from dkt_ray.storage import open_store


def test_an_intent_is_there_from_begin_to_end(tmp_path):
    intents = Intents.of(open_store(tmp_path), "champion")
    assert intents.pending() is None
    intent = Intent(action="rollout", before=None, after={"bundle": "b" * 64, "max_replicas": 2})
    intents.begin(intent)
    found = Intents.of(open_store(tmp_path), "champion").pending()
    assert found == intent
    assert found.bundle == "b" * 64
    assert Intents.of(open_store(tmp_path), "another").pending() is None
    intents.end()
    intents.end()
    assert intents.pending() is None


def test_one_is_at_work_at_a_time_and_can_be_asked_to_stop(tmp_path):
    intents = Intents.of(open_store(tmp_path), "champion")
    with intents.held():
        with pytest.raises(ConflictError, match="rollout of champion: process"), intents.held():
            pass
        intents.check()
        intents.ask_to_stop("it looks bad")
        with pytest.raises(RolloutError, match="stopped: it looks bad"):
            intents.check()
    with intents.held():
        intents.check()  # that was meant for somebody before
