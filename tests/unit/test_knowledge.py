"""/v1/knowledge-state: mastery now and after each of the last answers, and what is chosen to be shown."""

from types import MappingProxyType

import numpy as np
import pytest

from dkt_ray.serving import knowledge
from dkt_ray.serving.contract import KnowledgeRequest
from dkt_ray.serving.requests import brought
from tests.requests import event, post

KNOWLEDGE = "/v1/knowledge-state"


def test_knowledge_state_moves_with_the_answers(client, predictor, known):
    def ask(correct):
        history = [event(question, correct) for question in known[:10]]
        return post(client, {"history": history, "limit": 5}, KNOWLEDGE).json()

    right, wrong = ask(1), ask(0)
    assert len(right["concepts"]) == 5
    assert [each["concept"] for each in right["concepts"]] == [each["concept"] for each in wrong["concepts"]]
    means = [np.mean([each["mastery"] for each in state["concepts"]]) for state in (right, wrong)]
    assert means[0] > means[1]
    probes = right["concepts"][0]["probes"]
    asked = post(client, {"history": [event(q, 1) for q in known[:10]], "targets": probes}).json()["predictions"]
    assert right["concepts"][0]["mastery"] == pytest.approx(np.mean([each["probability"] for each in asked]))


def test_knowledge_state_of_given_concepts(client, predictor):
    wanted = predictor.catalogue.concepts[-2:]
    found = post(client, {"concepts": wanted}, KNOWLEDGE).json()
    assert [each["concept"] for each in found["concepts"]] == wanted
    assert found["cold_start"] is True
    refused = post(client, {"concepts": [wanted[0], "alchemy"]}, KNOWLEDGE)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/concepts/1"
    assert "alchemy" not in refused.text


def timed(known, count):
    questions = [known[(7 * index) % len(known)] for index in range(count)]
    return [event(q, index % 2, timestamp=1772467200 + 977 * index) for index, q in enumerate(questions)]


@pytest.mark.parametrize("at", [None, 1772567200])
def test_the_trajectory_is_the_state_after_each_of_the_last_answers(client, known, at):
    """Each moment is what a request with the history until then gets, asked when its last answer was given."""
    history = timed(known, 40)
    body = {"concepts": ["0", "3", "6"], "limit": 2}
    whole = post(client, body | {"history": history, "steps": 30, "at": at}, KNOWLEDGE).json()
    assert whole["steps"] == 30
    for step in (0, 13, 29):
        until = history[: 11 + step]
        then = {"history": until, "steps": 0, "at": until[-1]["timestamp"] if at else None}
        # heads follow the latest answers, so their order may differ
        alone = post(client, body | then, KNOWLEDGE).json()
        assert all("trajectory" not in each for each in alone["concepts"] + alone["heads"])
        for part, key in (("concepts", "concept"), ("heads", "head")):
            expected = {each[key]: each["mastery"] for each in alone[part]}
            found = {each[key]: each["trajectory"][step] for each in whole[part]}
            shared = expected.keys() & found.keys()
            assert shared
            assert [found[name] for name in shared] == pytest.approx([expected[name] for name in shared], abs=1e-6)
    now = post(client, body | {"history": history, "steps": 0, "at": at}, KNOWLEDGE).json()
    assert [each["mastery"] for each in whole["concepts"]] == pytest.approx(
        [each["mastery"] for each in now["concepts"]], abs=1e-6
    )
    trajectories = np.array([each["trajectory"] for each in whole["concepts"]])
    assert np.ptp(trajectories, axis=1).min() > 0.001


def planned(catalogue, **fields):
    request = KnowledgeRequest(**fields)
    past = brought(request).past
    plan = knowledge.plan(request, past, catalogue)
    return plan, knowledge.query(past, plan)


def test_no_moment_has_a_time_where_the_present_one_has_none(predictor, known):
    _, query = planned(predictor.catalogue, history=timed(known, 5), steps=2, concepts=["1"])
    assert query.at is None


def test_each_moment_is_asked_at_the_time_of_its_answer_where_the_present_one_has_a_time(predictor, known):
    plan, query = planned(predictor.catalogue, history=timed(known, 5), at=1772567200, steps=2, concepts=["1"])
    times, probes = [1772467200000 + 977000 * index for index in (3, 4)], len(plan.questions)
    assert query.at == [times[0]] * probes + [times[1]] * probes + [1772567200000] * probes
    assert query.seen == [4] * probes + [5] * probes + [5] * probes
    assert query.target == plan.questions * 3


def test_steps_are_as_many_as_there_are_answers(client, known):
    assert post(client, {}, KNOWLEDGE).json()["steps"] == 0
    assert post(client, {"history": timed(known, 3)}, KNOWLEDGE).json()["steps"] == 3
    assert post(client, {"history": timed(known, 60)}, KNOWLEDGE).json()["steps"] == 50


def test_heads_are_those_of_the_latest_answers_first_and_the_mean_over_their_probes(client, predictor, known):
    heads = predictor.catalogue.heads
    assert set(heads) == {question[1:4] for question in known}
    chosen = next(question for question in known if question[1:4] == heads[-1])
    found = post(client, {"history": [event(chosen), event("foreign")], "steps": 0}, KNOWLEDGE).json()["heads"]
    assert [each["head"] for each in found] == [heads[-1], *heads[:-1]]
    assert found[0]["probes"] == [question for question in known if question[1:4] == heads[-1]][:3]
    asked = post(client, {"history": [event(chosen), event("foreign")], "targets": found[0]["probes"]}).json()
    assert found[0]["mastery"] == pytest.approx(np.mean([each["probability"] for each in asked["predictions"]]))


def test_concepts_are_those_of_the_latest_answers_first(predictor, known):
    of = predictor.catalogue.concepts_of
    spare = next(concept for concept in predictor.catalogue.concepts if concept not in of[known[6]])
    history = [event(known[5]), event(known[6]), event("new", concepts=["mine"]), event("new", concepts=[spare])]
    shown = list(planned(predictor.catalogue, history=history)[0].concepts)
    assert shown[0] == spare
    assert set(shown[: 1 + len(of[known[6]])]) == {spare, *of[known[6]]}
    assert set(shown) == set(predictor.catalogue.concepts)
    assert len(planned(predictor.catalogue, history=history, limit=2)[0].concepts) == 2


def test_too_many_probes_are_refused_with_the_number_to_lower(client, known, monkeypatch):
    monkeypatch.setattr(knowledge, "MAX_TARGETS", 100)
    body = {"history": timed(known, 60)}
    for limits, pointer, message in (
        ({"limit": 5, "steps": 50}, "/steps", "expected at most 100 together: lower it to "),
        ({"limit": 20, "steps": 10}, "/steps", "lower it to "),
    ):
        answer = post(client, body | limits, KNOWLEDGE)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == pointer
        assert message in answer.json()["detail"]
        steps = int(answer.json()["detail"].rsplit(" ", 1)[1])
        assert post(client, body | limits | {"steps": steps}, KNOWLEDGE).status_code == 200
    monkeypatch.setattr(knowledge, "MAX_TARGETS", 5)
    answer = post(client, body, KNOWLEDGE)
    assert answer.json()["errors"][0]["pointer"] == "/limit"


def test_a_bundle_without_concepts_and_heads_has_none_to_tell(predictor):
    class Bare:
        concepts = heads = ()
        concepts_of = MappingProxyType({})
        probes = head_probes = staticmethod(lambda names: {})

    plan, query = planned(Bare(), history=[event()])
    scores = predictor.answer([query])[0]
    assert knowledge.state(plan, scores.probability) == {"steps": 1, "concepts": [], "heads": []}
