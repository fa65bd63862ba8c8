"""`make reliability`'s serving runs in short: nothing fails, nothing is answered wrongly, and each fault fires."""

import json
from contextlib import nullcontext
from dataclasses import replace

import psutil
import pytest

from benchmarks import ledger, serving
from benchmarks.serving_sides import Server, free_port
from dkt_ray.serving.service import REQUEST_TIMEOUT_S
from tests import bundles
from tests.bad_bundles import BAD
from tests.reliability import scenarios
from tests.reliability.head_kill import head_kill
from tests.reliability.scenarios import Outcome
from tests.reliability.world import tiny
from tests.runs import write_log

RATE = 10.0


@pytest.fixture(scope="module")
def world(ray_cluster, tmp_path_factory):
    from ray import serve

    made = replace(tiny(tmp_path_factory.mktemp("reliability"), free_port()), deadline_s=90.0)
    made.rollout(made.digests[0])
    yield made
    serve.shutdown()


def right(outcome: Outcome) -> dict:
    assert outcome.wrong == [], outcome.figures
    return outcome.figures


def test_rollouts_and_a_rollback_fail_no_request_and_mix_no_answers(world):
    """Each of the two moves has started other replicas, and the alias is back."""
    before = world.alias()
    assert right(scenarios.rollouts(world, 1, RATE))["rollouts"] == 1
    assert world.alias() == before


def test_a_lone_replica_is_replaced_without_a_failed_request(world):
    right(scenarios.code_rollouts(world, 1, RATE))


def test_bad_bundles_are_refused_and_the_old_one_serves(world, tmp_path):
    """Two of the fifteen: what needs a process of its own, and what only the answers tell (tests/unit has all)."""
    some = {name: BAD[name] for name in ("crashes the parser", "wrong golden answers")}
    assert right(scenarios.bad_bundles(world, some, tmp_path, RATE))["refused"] == 2


def test_a_killed_replica_costs_the_client_nothing(world):
    figures = right(scenarios.replica_kills(world, 2, 0.0, RATE))
    assert figures["client"]["ok"] >= 10


def test_a_killed_controller_costs_nothing(world):
    right(scenarios.controller_kill(world, RATE))


def test_a_killed_proxy_comes_back(world):
    """And of the outage the client sees nothing."""
    assert right(scenarios.proxy_kill(world, RATE))["client_failures"] == 0


def test_a_lost_head_costs_a_client_who_knows_both_nodes_nothing(world):
    figures = right(head_kill(world, 0.0, RATE))
    assert figures["other_node_alive"]
    assert figures["client"]["ok"] == figures["client"]["requests"]


def test_what_is_too_much_is_refused_and_the_rest_is_answered(world):
    """With 429, or after all the time that Serve gives a request, which a machine with no time may need."""
    outcome = scenarios.overload(world, 0.0, 3.0)
    assert right(outcome)["refused"] > 0
    others = [entry for entry in outcome.ledgers["raw"] if entry.status not in (ledger.OK, scenarios.REFUSED)]
    assert [entry for entry in others if entry.answered - entry.sent < REQUEST_TIMEOUT_S - 1] == []


def test_http_the_job_and_the_predictor_give_one_answer(world):
    right(scenarios.parity(world, bundles.world().histories, world.cache.parent))


def test_of_lightgbm_they_give_the_same_bits(world, tmp_path):
    figures = right(scenarios.parity_exact(world, bundles.world().histories, tmp_path))
    assert (figures["tolerance"], figures["students"]) == (0, len(bundles.world().histories.users))


def test_the_benchmark_tells_every_figure_that_is_asked_for(world, tmp_path, monkeypatch, capsys):
    """Against the service that runs here, in place of one of its own."""
    here = Server("ours, proxy", psutil.Process(), world.port)
    monkeypatch.setattr(serving, "ours", lambda *args, **settings: nullcontext(here))
    log = write_log(tmp_path / "log.csv", bundles.simulate(users=10))
    serving.main(["--quick", "--store", world.store, "--bundle", world.alias(), "--data", str(log)])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert min(figures[name] for name in ("of_bare_c32", "targets_1000_speedup", "targets_10000_ms")) > 0
    assert figures["vs_bentoml"] is None
    assert "--bentoml" in figures["missing"][0]
    for turns in figures["closed"]["ours, proxy"].values():
        assert (turns["failed"], turns["wrong"]) == (0, 0)


def test_a_planted_wrong_answer_is_caught(world):
    with world.load(connections=2) as load:
        load.wait_for(20)
    assert world.wrong(load.entries) == []
    planted = [*load.entries[:-1], load.entries[-1]._replace(values=[v + 1e-3 for v in load.entries[-1].values])]
    assert "off by 0.001" in world.wrong(planted)[0]
    mixed = load.entries[0]._replace(version=world.other())
    assert "off by" in world.wrong([mixed])[0]
