"""A rollback beside a rollout: what is at work gives up, unless it has just succeeded; the store is real."""

import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from dkt_ray.errors import RolloutError
from dkt_ray.serving import rollback
from dkt_ray.serving.intent import STOP, Intent, Intents
from tests.unit.test_service import NEW, OLD, args, intent, promote

ENDED = "the rollout that was at work has been ended"


class AtWork(threading.Thread):
    """A rollout in another thread: it does something, says so, and looks whether it should stop when it may go on."""

    def __init__(self, config, *steps):
        super().__init__(daemon=True)
        self.config, self.steps = config, steps
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.stopped = None

    def run(self):
        with self.config.intents.held():
            for step in self.steps:
                step()
            self.reached.set()
            self.go_on.wait(60)
            try:
                self.config.intents.check()
            except RolloutError as error:
                self.stopped = str(error)

    def __enter__(self):
        self.start()
        assert self.reached.wait(60)
        return self

    def __exit__(self, *error):
        self.go_on.set()
        self.join(60)


@pytest.fixture
def config(tmp_path):
    config = rollback.RollbackConfig(store=str(tmp_path), timeout_s=60.0)
    promote(config, OLD)
    return config


def when_it_waits(monkeypatch, *steps):
    """Do these one after another while the rollback waits."""
    left = list(steps)
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: left.pop(0)() if left else None)
    monkeypatch.setattr(rollback, "time", clock)


def test_a_rollout_that_has_changed_nothing_yet_is_not_waited_for(config):
    with AtWork(config) as at_work:
        with ExitStack() as ours:
            assert rollback._take_over(config, ours) == ENDED
            at_work.go_on.set()
            at_work.join(60)
            assert at_work.stopped == "stopped: somebody else has taken over"
            config.intents.check()
        assert not config.intents.succeeded()


def test_a_rollout_that_changes_things_is_asked_until_it_stops(config, monkeypatch):
    begun: Intent = intent(args(OLD), args(NEW))
    with AtWork(config, lambda: config.intents.begin(begun)) as at_work, ExitStack() as ours:
        when_it_waits(monkeypatch, lambda: config.intents.files.delete(STOP), at_work.go_on.set)
        assert rollback._take_over(config, ours) == ENDED
        at_work.join(60)
        assert at_work.stopped == "stopped: rollback"


@pytest.mark.parametrize("noted", [False, True])
def test_a_rollout_that_has_just_succeeded_is_rolled_back_and_not_ended(config, monkeypatch, noted):
    begun = intent(args(OLD), args(NEW))
    steps = [lambda: config.intents.begin(begun), lambda: promote(config, NEW)]
    if noted:
        steps.append(lambda: config.intents.succeed(begun))
    with AtWork(config, *steps) as at_work, ExitStack() as ours:
        when_it_waits(monkeypatch, at_work.go_on.set)
        assert rollback._take_over(config, ours) is None
        at_work.join(60)
        assert at_work.stopped is None


def test_one_that_leaves_while_it_is_looked_at_was_not_ended(config, monkeypatch):
    with AtWork(config) as at_work, ExitStack() as ours:

        def leaves():
            at_work.go_on.set()
            at_work.join(60)
            return pending()

        pending = config.intents.pending
        monkeypatch.setattr(Intents, "pending", lambda self: leaves())
        assert rollback._take_over(config, ours) is None
        assert at_work.stopped is None
