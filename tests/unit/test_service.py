"""What serves, and what takes its place, while the service is slow, down, full or half changed; Serve is played."""

from functools import partial
from types import SimpleNamespace

import httpx
import pytest
from ray.serve.exceptions import RayServeException

from dkt_ray.errors import RolloutError, StorageError
from dkt_ray.serving import service
from dkt_ray.serving.deployments import DEPLOYMENT, ServeArgs
from dkt_ray.serving.intent import Intent

OLD, NEW, OTHER = (letter * 64 for letter in "abc")


def args(bundle, **more):
    return ServeArgs(bundle=bundle, **more)


def intent(before, after, action="rollout"):
    return Intent(action=action, before=before and before.model_dump(), after=after.model_dump())


def change(config, before, after, steps):
    """A rollout that does this."""
    with service.changing(intent(before, after), config):
        for step in steps:
            step()


def fail(error):
    raise error


def promote(config, bundle):
    """Have the alias point to a bundle that nobody has built."""
    config.registry.store.write_json(f"bundles/{bundle}/manifest.json", {})
    now = config.registry.alias(config.alias)
    config.registry.promote(config.alias, bundle, now and now.bundle, "a test")


class Serve:
    """One application: its replicas' arguments, their states, and how the next deployments end."""

    RunTarget = staticmethod(lambda target, **_: target)

    def __init__(self):
        self.runs = []  # arguments of the replicas that run
        self.waiting = 0  # replicas that find no place
        self.there = True
        self.broken = ()  # bundles whose replicas do not start
        self.failed = False
        self.deployed = []  # what was asked for
        self.answer = httpx.Response(200, headers={"x-model-version": OLD})

    def status(self):
        states = {"RUNNING": len(self.runs), "STARTING": self.waiting}
        state = "DEPLOY_FAILED" if self.failed else "RUNNING"
        deployment = SimpleNamespace(replica_states=states, message="")
        application = SimpleNamespace(
            status=service.ApplicationStatus(state), message="", deployments={DEPLOYMENT: deployment}
        )
        return SimpleNamespace(applications={service.APPLICATION: application} if self.there else {})

    def run_many(self, targets, **_):
        [(wanted, surge)] = targets
        self.deployed.append((wanted.bundle, surge))
        self.there, self.failed = True, wanted.bundle in self.broken
        if not self.failed:
            self.runs = [wanted]
            self.answer = httpx.Response(200, headers={"x-model-version": wanted.bundle})

    def delete(self, name):
        self.there, self.runs = False, []

    def broadcast(self, method):
        if not self.runs:
            raise RayServeException("no replica runs")
        return SimpleNamespace(results=lambda timeout_s: list(self.runs))

    def get(self, url, **_):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def played(monkeypatch):
    played = Serve()
    monkeypatch.setattr(service, "serve", played)
    monkeypatch.setattr(service, "handle", lambda: played)
    monkeypatch.setattr(service, "application", lambda args, surge=True: (args, surge))
    monkeypatch.setattr(service.httpx, "get", played.get)
    monkeypatch.setattr(service, "check_room", lambda args, starting, resident_mib: "room")
    return played


@pytest.fixture
def config(tmp_path):
    return service.ServiceConfig(store=str(tmp_path))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (httpx.Response(200, headers={"x-model-version": OLD}), OLD),
        (httpx.Response(429), service.BUSY),
        (httpx.ReadTimeout("it waits in the queue"), service.BUSY),
        (httpx.Response(503), service.DOWN),
        (httpx.Response(404), None),
        (httpx.ConnectError("refused"), None),
    ],
)
def test_a_service_that_is_slow_or_down_is_told_from_none(played, config, answer, told):
    played.answer = answer
    assert service.version(config) == told
    played.runs = [args(OLD)]
    if told is None:
        with pytest.raises(RolloutError, match="does not answer at http://127"):
            service.running(config)
    else:
        assert service.running(config) == args(OLD)


def test_what_serves_is_remembered_for_when_no_replica_answers(played, config):
    with pytest.raises(RolloutError, match="none of its replicas answers, and no rollout has kept"):
        service.running(config)
    with service.changing(intent(None, args(OLD, min_replicas=2)), config):
        pass
    assert config.intents.pending() is None
    played.answer = httpx.Response(503)
    assert service.running(config) == args(OLD, min_replicas=2)
    played.runs = [args(NEW)]
    assert service.running(config) == args(NEW), "replicas know better"


def test_new_replicas_are_waited_for_past_a_full_queue(played, config):
    played.run_many = lambda targets, **_: played.runs.append(args(NEW))
    played.answer = httpx.ReadTimeout("it waits in the queue")
    service.deploy(args(NEW), config)
    with pytest.raises(RolloutError, match="not up after"):
        service.deploy(args(OLD), config.model_copy(update={"timeout_s": 0.3}))


def no_room(args, starting, resident_mib):
    raise RolloutError("no room")


def test_what_served_before_takes_the_place_of_what_serves_where_there_is_no_room_beside_it(
    played, config, monkeypatch
):
    played.runs = [args(NEW)]
    service.bring_back(args(OLD), config)
    monkeypatch.setattr(service, "check_room", no_room)
    service.bring_back(args(NEW), config)
    assert played.deployed == [(OLD, True), (NEW, False)]
    service.bring_back(args(NEW), config)
    assert played.deployed[2:] == [(NEW, True)], "it serves all the time: it is not stopped to make room for itself"


def test_replicas_that_the_load_wants_and_that_find_no_place_are_not_waited_for(played, config):
    played.runs, played.waiting = [args(OLD)], 1
    hurried = config.model_copy(update={"timeout_s": 0.3})
    service.deploy(args(NEW), hurried, config.intents)
    with pytest.raises(RolloutError, match=r"not up after 0.3 s \(replicas: {'RUNNING': 1, 'STARTING': 1}\)"):
        service.deploy(args(NEW, min_replicas=2), hurried)
    played.run_many = lambda targets, **_: None
    with pytest.raises(RolloutError, match="not up after"):
        service.deploy(played.runs[0], hurried, config.intents)  # equal arguments: the replicas are to be replaced


def test_an_old_intent_leaves_alone_what_others_have_deployed_since(played, config):
    for before in (None, args(OLD)):
        config.intents.begin(intent(before, args(NEW)))
        played.runs = [args(OTHER)]
        assert service.recover(config) is None
        assert config.intents.pending() is None
        assert (played.there, played.deployed) == (True, [])
    config.intents.begin(intent(args(OLD), args(NEW)))
    played.runs = [args(OLD, challenger=NEW)]
    assert "is undone" in service.recover(config)
    assert played.runs == [args(OLD)]


def test_a_change_of_settings_that_was_killed_is_undone(played, config):
    before, after = args(OLD), args(OLD, min_replicas=2)
    config.intents.begin(intent(before, after))
    promote(config, OLD)
    played.runs = [after]
    assert "is undone" in service.recover(config)
    assert played.runs == [before]
    assert intent(None, after).done(OLD)
    assert intent(before, after, "rollback").done(OLD)


def test_a_rollout_is_possible_after_one_that_can_be_neither_finished_nor_undone(played, config):
    played.runs, played.broken = [args(NEW)], (OLD,)
    config.intents.begin(intent(args(OLD), args(NEW)))
    with pytest.raises(RolloutError, match="did not come back"):
        service.recover(config)
    assert "did not come back" in service.recover_if_possible(config)
    with service.changing(intent(args(NEW), args(OTHER)), config):
        assert config.intents.pending().before == args(OLD).model_dump(mode="json")
    config.intents.begin(Intent(action="rollout", before={"of": "another release"}, after={"bundle": NEW}))
    assert "of" in service.recover_if_possible(config)
    with service.changing(intent(args(OLD), args(NEW)), config):
        pass
    assert config.intents.pending() is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("the write did succeed")])
def test_a_failure_after_the_alias_has_moved_moves_it_back(played, config, error):
    promote(config, OLD)
    played.runs = [args(OLD)]
    steps = [lambda: service.deploy(args(NEW), config), lambda: promote(config, NEW), lambda: fail(error)]
    with pytest.raises((KeyboardInterrupt, RolloutError)):
        change(config, args(OLD), args(NEW), steps)
    assert config.registry.alias(config.alias).bundle == OLD
    assert played.runs == [args(OLD)]
    assert config.intents.pending() is None


def test_an_alias_that_does_not_move_back_is_followed_by_the_next_call(played, config, monkeypatch):
    promote(config, OLD)
    played.runs, error = [args(OLD)], StorageError("no answer")
    with monkeypatch.context() as patch:
        refuse = partial(patch.setattr, service.Registry, "promote", lambda *_: fail(error))
        steps = [lambda: promote(config, NEW), refuse, lambda: fail(error)]
        with pytest.raises(RolloutError, match=r"does not move back \(no answer\)"):
            change(config, args(OLD), args(NEW), steps)
    assert played.runs == [args(OLD)]
    assert "is finished" in service.recover(config)
    assert played.runs == [args(NEW)]


def test_an_alias_that_nobody_has_moved_stays_when_a_change_fails(played, config):
    promote(config, NEW)
    played.runs, played.broken = [args(OLD)], (NEW,)
    with pytest.raises(RolloutError, match="do not start"):
        change(config, args(OLD), args(NEW), [lambda: service.deploy(args(NEW), config)])
    assert config.registry.alias(config.alias).version == 1


def test_who_has_lost_the_lease_neither_begins_nor_undoes(played, config):
    promote(config, OLD)
    done = []
    promotes = partial(done.append, "promote")
    for lost_before, steps in ((True, [promotes]), (False, [config.intents.take_over, config.intents.check, promotes])):
        played.runs = [args(NEW)]
        with config.intents.held():
            if lost_before:
                config.intents.take_over()
            with pytest.raises(RolloutError, match="whoever has taken over"):
                change(config, args(OLD), args(NEW), steps)
        assert config.intents.pending() is not None, "the other one finds it"
        assert (played.deployed, done) == ([], [])
