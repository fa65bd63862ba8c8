"""A rollout's stages, against replicas that are made up: when one ends, and as what."""

import threading
from types import SimpleNamespace

import pytest

from dkt_ray.errors import RolloutError
from dkt_ray.serving import trial
from dkt_ray.serving.intent import Intents
from dkt_ray.serving.rollout import Stages
from dkt_ray.serving.traffic import Counts, Findings
from dkt_ray.serving.trial import Trial, TrialConfig, watch
from dkt_ray.storage import open_store

CONFIG = TrialConfig(step_s=0.001, step_requests=50, watch_s=0.001)
INTENTS = SimpleNamespace(check=lambda: None)


def counts(answered, asked=None):
    found = Counts(asked=answered if asked is None else asked)
    for _ in range(answered):
        found.add(0.01, failed=False)
    return found


@pytest.fixture
def replicas(monkeypatch):
    """Says what the replicas find."""
    monkeypatch.setattr(trial.service, "handle", lambda: None)
    monkeypatch.setattr(trial, "POLL_S", 0.0)

    def find(champion, challenger):
        monkeypatch.setattr(trial, "direct", lambda handle, traffic: Findings(champion, challenger))

    return find


def test_a_step_ends_well_with_enough_answers_or_with_too_few_requests_to_tell(replicas, caplog):
    replicas(counts(100), counts(50, asked=1000))
    assert Trial(CONFIG, INTENTS).canary(1.0)["challenger"]["answered"] == 50
    assert caplog.messages == []
    replicas(counts(100), counts(3))
    assert Trial(CONFIG, INTENTS).canary(0.05)["challenger"]["answered"] == 3
    assert caplog.messages == ["rollout: canary at 5%: 3 answers, nothing is concluded from less than 20"]


def test_a_stage_whose_challenger_answers_nobody_fails_when_its_time_is_over(replicas):
    replicas(counts(0, asked=40), counts(0, asked=40))
    with pytest.raises(RolloutError, match="canary at 100%: silence: 0 of 40 requests"):
        Trial(CONFIG, INTENTS).canary(1.0)
    with pytest.raises(RolloutError, match="watch: silence: 0 of 40 requests"):
        watch(Findings(counts(100)), CONFIG, INTENTS)


def test_a_stage_that_changes_nothing_is_left_alone_when_somebody_asks_to_stop(tmp_path):
    intents, never = Intents.of(open_store(tmp_path), "champion"), threading.Event()

    def judge():
        intents.ask_to_stop("a rollback")
        never.wait()

    with intents.held(), pytest.raises(RolloutError, match="stopped: a rollback"):
        Stages(intents).run("gate", judge, leave=True)
    never.set()


def test_a_stage_that_may_be_left_alone_gives_what_it_found_or_why_it_failed(tmp_path):
    stages = Stages(Intents.of(open_store(tmp_path), "champion"))
    assert stages.run("gate", lambda: 7, leave=True) == stages.found["gate"] == 7
    with pytest.raises(TimeoutError, match="of its own"):
        stages.run("gate", refuse, leave=True)


def refuse():
    raise TimeoutError("of its own")
