"""`dkt predict`: the same answer from a service, from a bundle here, and for a user whose answers are kept."""

import json
from functools import partial

import pytest

from dkt_ray.client import Client, RefusedError
from dkt_ray.errors import ConfigError, InputError
from dkt_ray.pipelines import predict
from dkt_ray.registry.store import Registry
from dkt_ray.storage import open_store
from tests import bundles
from tests.requests import forwarded, post


@pytest.fixture
def ask(api, monkeypatch):
    monkeypatch.setattr(predict, "Client", partial(Client, transport=forwarded(api)))

    def ask(history=None, **settings):
        return predict.run(predict.PredictConfig(history=history and str(history), **settings))

    return ask


def csv(path, header, rows):
    path.write_text("\n".join([header, *rows, ""]))
    return path


def test_a_service_and_a_bundle_answer_alike_from_every_form_of_history(ask, api, predictor, known, tmp_path, caplog):
    caplog.set_level("INFO", "dkt_ray")
    rows = [(q, i % 2, f"2026-03-02 16:0{i}:00") for i, q in enumerate(known[:6])]
    plain = csv(tmp_path / "plain.csv", "question,correct,timestamp", [f"{q},{c},{t}" for q, c, t in rows])
    raw = csv(
        tmp_path / "raw.csv",
        "userID,assessmentItemID,testId,answerCode,Timestamp,KnowledgeTag",
        [f"1,{q},,{c},{t}," for q, c, t in rows],
    )
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"question": q, "correct": c, "timestamp": t} for q, c, t in rows]))
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps({"history": json.loads(listed.read_text()), "targets": known[:2]}))
    expected = post(api, json.loads(whole.read_text())).json()
    targets = tuple(known[:2])
    for found in (ask(plain, targets=targets), ask(raw, targets=targets), ask(listed, targets=targets), ask(whole)):
        assert found["predictions"] == expected["predictions"]
    bundles.build(tmp_path / "bundle", bundles.save_members(tmp_path / "members"))
    Registry(open_store(str(tmp_path / "store"))).publish(tmp_path / "bundle", predictor.version)
    here = ask(whole, bundle=predictor.version, store=str(tmp_path / "store"), explain=True)
    assert [each["probability"] for each in here["predictions"]] == [
        each["probability"] for each in expected["predictions"]
    ]
    assert f"{here['predictions'][0]['members']['lightgbm']:.4f}" in caplog.messages[-1]
    events = [
        {"event_id": str(i), "user_id": "u", "question": q, "correct": c, "answered_at": t}
        for i, (q, c, t) in enumerate(rows)
    ]
    post(api, {"events": events}, "/v1/events")
    assert ask(user_id="u", targets=targets)["predictions"] == expected["predictions"]


def test_nobody_is_a_cold_start(ask, known, caplog):
    caplog.set_level("INFO", "dkt_ray")
    assert ask(targets=(known[0], "new"))["cold_start"] is True
    assert "cold start; not known: new" in caplog.text


def test_what_is_no_history_is_refused_with_the_file(ask, tmp_path, known):
    for name, text, message in (
        ("a.csv", "q,right\n1,1\n", "no columns question and correct"),
        ("b.csv", "question,correct\nq,maybe\n", "history/0/correct"),
        ("c.json", "{", "cannot be read"),
        ("d.json", '[{"question": "q"}]', "history/0/correct"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=f"{name}: .*{message}"):
            ask(tmp_path / name, targets=tuple(known[:1]))
    with pytest.raises(InputError, match="targets"):
        ask()
    with pytest.raises(InputError, match="no such file"):
        ask(tmp_path / "none.csv", targets=("q",))


def test_a_deleted_user_is_refused(ask, api, known):
    api.delete("/v1/users/gone")
    with pytest.raises(RefusedError, match="410"):
        ask(user_id="gone", targets=(known[0],))


def test_a_bundle_here_has_no_history_of_a_user_whom_a_file_names(tmp_path):
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"user_id": "u", "targets": ["q"]}))
    with pytest.raises(InputError, match=r"request.json: user_id stands for a history that a service keeps"):
        predict.run(predict.PredictConfig(history=str(request), bundle="champion", store=str(tmp_path)))


def test_a_user_has_his_history_at_the_service(tmp_path):
    from dkt_ray.config import build

    with pytest.raises(ConfigError, match="leave out history and bundle"):
        build(predict.PredictConfig, {"user_id": "u", "bundle": "champion", "targets": ["q"]})
