"""Events and users over HTTP: what is kept, told and deleted, and that a stored user is answered as his history is."""

from asyncio import Semaphore
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from dkt_ray.errors import UnavailableError
from dkt_ray.events.histories import SqlHistories
from dkt_ray.events.sql import SqlEventLog, open_events
from dkt_ray.privacy import Privacy
from dkt_ray.serving import edge
from dkt_ray.serving.api import Served, build_app
from dkt_ray.serving.keys import Holder, Keys, make, utc_now
from dkt_ray.serving.memory import DAY_MS, MOST_WRITES, Memory
from tests.event_promises import until
from tests.requests import PRIVACY, event, post, service

EVENTS, COUNT, USERS = "/v1/events", "/v1/events/count", "/v1/users"
AT = "2026-03-02T16:{:02}:00Z"


def logged(event_id="e", user="ada", question="q", correct=1, **more):
    return {"event_id": event_id, "user_id": user, "question": question, "correct": correct} | more


def send(client, *events, **headers):
    return post(client, {"events": list(events)}, EVENTS, **headers)


def counts(answer):
    assert answer.status_code == 200, answer.text
    return tuple(answer.json()[name] for name in ("added", "waiting", "repeated"))


def test_events_are_kept_once_and_counted(api):
    first = [logged("1"), logged("2", correct=0, answered_at=AT.format(1)), logged("3", correct=None, answer="42")]
    assert counts(send(api, *first)) == (2, 1, 0)
    assert counts(send(api, *first)) == (0, 0, 3)
    assert api.get(COUNT).json() == {"events": 2}
    grade = {"event_id": "3", "user_id": "ada", "question": "q", "correct": 1}
    assert counts(send(api, grade)) == (1, 0, 0)
    assert counts(send(api, grade)) == (0, 0, 1)
    assert api.get(COUNT).json() == {"events": 3}


def test_an_id_of_other_content_is_named_and_nothing_of_the_request_is_kept(api):
    send(api, logged("1"))
    answer = send(api, logged("2"), logged("1", correct=0))
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["pointer"] == "/events/1/event_id"
    assert api.get(COUNT).json() == {"events": 1}


BAD = {
    "no events": ({"events": []}, "/events", "at least 1 item"),
    "too many": ({"events": [logged()] * 1_001}, "/events", "at most 1000 items"),
    "no id": ({"events": [{"user_id": "u", "question": "q"}]}, "/events/0/event_id", "is missing"),
    "no user": ({"events": [{"event_id": "1", "question": "q"}]}, "/events/0/user_id", "is missing"),
    "NUL in a user": ({"events": [logged(user="a\0b")]}, "/events/0/user_id", "no control characters"),
    "newline in a question": ({"events": [logged(question="a\nb")]}, "/events/0/question", "no control characters"),
    "NUL in an answer": ({"events": [logged(answer="a\0b")]}, "/events/0/answer", "no NUL"),
    "a long answer": ({"events": [logged(answer="a" * 201)]}, "/events/0/answer", "at most 200 characters"),
    "NUL in a concept": ({"events": [logged(concepts=["\0"])]}, "/events/0/concepts/0", "no control characters"),
    "a grade of 2": ({"events": [logged(correct=2)]}, "/events/0/correct", "less than or equal to 1"),
    "far ahead": (
        {"events": [logged(), logged("2", answered_at="2999-01-01")]},
        "/events/1/answered_at",
        "a day ahead",
    ),
    "long ago": ({"events": [logged(shown_at="1969-12-31")]}, "/events/0/shown_at", "before 1970"),
    "answered before it was shown": (
        {"events": [logged(shown_at=AT.format(2), answered_at=AT.format(1))]},
        "/events/0/shown_at",
        "later than answered_at",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_event_is_refused_with_its_field_and_none_is_kept(api, name):
    body, pointer, message = BAD[name]
    answer = post(api, body, EVENTS)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert message in answer.json()["errors"][0]["message"]
    assert api.get(COUNT).json() == {"events": 0}


def test_a_day_ahead_is_early_enough_for_a_clock_that_is_wrong(predictor):
    memory = Memory(None, None)
    known = SimpleNamespace(**dict.fromkeys(("test", "concepts", "answer", "correct", "shown_at", "answered_at")))
    known.event_id = known.user_id = known.question = "q"
    assert memory._event(0, known, "", 5).answered_at == 5
    assert DAY_MS == 86_400_000


STORED = ("/v1/predict", "/v1/knowledge-state", "/v1/recommend", "/v1/score")


@pytest.mark.parametrize("path", STORED)
@pytest.mark.parametrize("at", [None, AT.format(59)])
def test_a_stored_user_is_answered_as_the_same_history_is(api, known, path, at):
    """Late events too: the order is that of the answers, whenever they arrive."""
    asked = ({"targets": [known[0], "new"]} if path == "/v1/predict" else {}) | ({"at": at} if at else {})
    rows = [event(q, i % 2, timestamp=AT.format(i)) for i, q in enumerate([*known[:9], "new"])]
    rows[-1] |= {"concepts": ["1", "2"], "test": "t"}
    sent = [_as_logged(i, row) for i, row in enumerate(rows)]
    assert counts(send(api, *sent[5:])) == (5, 0, 0)
    late = post(api, asked | {"user_id": "ada"}, path).json()
    assert counts(send(api, *sent[:5])) == (5, 0, 0)
    found = post(api, asked | {"user_id": "ada"}, path)
    assert found.status_code == 200
    assert found.json() == post(api, asked | {"history": rows}, path).json()
    assert found.json() != late == post(api, asked | {"history": rows[5:]}, path).json()


def _as_logged(index, row):
    rest = {name: value for name, value in row.items() if name != "timestamp"}
    return {"event_id": str(index), "user_id": "ada", "answered_at": row["timestamp"]} | rest


def test_of_a_long_history_the_latest_answers_count_and_the_others_are_counted(api, known, monkeypatch):
    for module in ("memory", "events"):
        monkeypatch.setattr(f"dkt_ray.serving.{module}.MAX_STORED", 5)
    rows = [event(q, i % 2, timestamp=AT.format(i)) for i, q in enumerate(known[:9])]
    send(api, *(_as_logged(i, row) for i, row in enumerate(rows)))
    found = post(api, {"user_id": "ada", "targets": known[:2]}).json()
    assert found == post(api, {"history": rows[4:], "targets": known[:2]}).json() | {"older": 4}
    user = api.get(f"{USERS}/ada?answers=9").json()
    assert (user["answers"], len(user["latest"]), user["first_answered_at"]) == (9, 5, AT.format(4))


def test_users_of_a_batch_are_answered_or_refused_by_themselves(api, known):
    send(api, logged("1", question=known[0], answered_at=AT.format(1)), logged("2", "bob"))
    api.delete(f"{USERS}/bob")
    students = [
        {"user_id": "ada", "targets": known[:2]},
        {"user_id": "bob", "targets": known[:2]},
        {"user_id": "ada", "history": [], "targets": known[:2]},
        {"user_id": "nobody", "targets": known[:2]},
    ]
    items = post(api, {"students": students}, "/v1/predict:batch").json()["items"]
    assert [item["status"] for item in items] == [200, 410, 422, 200]
    assert items[0]["answer"] == post(api, students[0]).json()
    assert items[3]["answer"] == post(api, {"targets": known[:2]}).json()
    assert items[2]["problem"]["errors"][0]["pointer"] == "/students/2/history"


def test_a_batch_reads_no_more_users_than_one_request_may_have_rows(predictor, known, tmp_path, monkeypatch):
    monkeypatch.setattr("dkt_ray.serving.predict_batch.MAX_ROWS", 5)
    reads = asked(monkeypatch)
    with service(predictor, tmp_path) as api:
        send(api, *(logged(str(i), question=known[i]) for i in range(3)))
        students = [{"user_id": "ada", "targets": known[:1]}] * 50
        answer = post(api, {"students": students}, "/v1/predict:batch")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/students"
    assert "8 events and targets of the first 2" in answer.json()["errors"][0]["message"]
    assert len(reads) == 2


def test_a_batch_waits_once_for_a_log_that_cannot_be_reached(predictor, known, tmp_path, monkeypatch):
    reads = asked(monkeypatch, UnavailableError("the database does not answer now"))
    students = [{"user_id": "ada", "targets": known[:1]}] * 3 + [{"targets": known[:1]}]
    with service(predictor, tmp_path) as api:
        answer = post(api, {"students": students}, "/v1/predict:batch")
    assert answer.status_code == 200, answer.text
    assert [item["status"] for item in answer.json()["items"]] == [503, 503, 503, 200]
    assert len(reads) == 1


def asked(monkeypatch, error=None):
    """The reads of users from now on."""
    reads, get = [], SqlHistories.get

    def counted(*args):
        reads.append(args)
        if error is not None:
            raise error
        return get(*args)

    monkeypatch.setattr(SqlHistories, "get", counted)
    return reads


def test_what_one_replica_acknowledges_is_in_the_next_answer_of_another(predictor, known, tmp_path):
    ask = {"user_id": "ada", "targets": known[:3]}
    with service(predictor, tmp_path) as one, service(predictor, tmp_path) as other:
        history = []
        for turn in range(6):
            writer, reader = (one, other) if turn % 2 else (other, one)
            send(writer, logged(str(turn), question=known[turn], correct=turn % 2, answered_at=AT.format(turn)))
            history.append(event(known[turn], turn % 2, timestamp=AT.format(turn)))
            expected = post(one, {"history": history, "targets": known[:3]}).json()
            assert post(reader, ask).json() == post(writer, ask).json() == expected
        gone = one.delete(f"{USERS}/ada").json()
        assert post(other, ask).status_code == 410
        assert other.delete(f"{USERS}/ada").json()["receipt"] == gone["receipt"]


def test_a_user_is_told_and_deleted_for_ever(api):
    sent = [logged(str(i), correct=i % 2, answered_at=AT.format(i), answer="raw") for i in range(3)]
    send(api, *sent, logged("w", correct=None))
    user = api.get(f"{USERS}/ada?answers=2").json()
    assert (user["answers"], user["waiting"], user["correct"]) == (3, 1, 1)
    assert (user["first_answered_at"], user["last_answered_at"]) == (AT.format(0), AT.format(2))
    assert [each["answered_at"] for each in user["latest"]] == [AT.format(1), AT.format(2)]
    assert "raw" not in api.get(f"{USERS}/ada?answers=2").text
    assert api.get(f"{USERS}/ada").json()["latest"] == []
    receipt = api.delete(f"{USERS}/ada")
    assert receipt.status_code == 200
    assert receipt.json()["removed"]["events"] == 3
    assert receipt.json()["removed"]["waiting"] == 1
    assert "ada" not in receipt.json()["receipt"]
    assert api.get(f"{USERS}/ada").status_code == 410
    assert api.get(COUNT).json() == {"events": 0}
    again = [send(api, logged("new")), post(api, {"user_id": "ada", "targets": ["q"]}), send(api, sent[0])]
    assert {answer.status_code for answer in again} == {410}
    assert {answer.headers["content-type"] for answer in again} == {"application/problem+json"}
    assert api.delete(f"{USERS}/ada").json() == receipt.json() | {
        "removed": dict.fromkeys(receipt.json()["removed"], 0)
    }


@pytest.mark.parametrize("user", ["a/b", "..", "a b?c#d", "ä€", "u" * 200])
def test_ids_of_users_may_hold_anything_that_prints(api, user):
    from urllib.parse import quote

    send(api, logged(user=user))
    path = f"{USERS}/{quote(user, safe='').replace('.', '%2E')}"
    assert api.get(path).json()["answers"] == 1
    assert api.delete(path).status_code == api.delete(path).status_code == 200
    assert api.get(path).status_code == 410


def test_nobody_has_no_page(api):
    assert api.get(f"{USERS}/nobody").status_code == 404
    assert api.get(f"{USERS}/ada?answers=1001").status_code == 422


def test_a_user_whose_answers_all_wait_is_known(api):
    send(api, logged("w", correct=None))
    user = api.get(f"{USERS}/ada?answers=5").json()
    assert (user["answers"], user["waiting"], user["last_answered_at"], user["latest"]) == (0, 1, None, [])


def test_a_user_who_was_never_here_can_be_deleted_too(api):
    """Prepared data may hold him."""
    assert sum(api.delete(f"{USERS}/never").json()["removed"].values()) == 0
    assert send(api, logged(user="never")).status_code == 410


@pytest.mark.parametrize("sent", ["ada%0A", "%0Aada", "ada%0D%0A", "a%00da", "ada%7F", "ada%C2%85"])
def test_an_id_with_a_control_character_is_nobodys(api, sent):
    send(api, logged())
    for method in ("GET", "DELETE"):
        refused = api.request(method, f"{USERS}/{sent}")
        assert (refused.status_code, refused.headers["content-type"]) == (400, edge.PROBLEM)
    assert api.get("/livez%0A").status_code == 400
    assert api.get(f"{USERS}/ada").json()["answers"] == 1


def test_another_tenants_user_is_not_there(predictor, known, tmp_path):
    texts = {tenant: make(utc_now(), None) for tenant in ("blue", "red", "green")}
    keys = Keys(holders=[Holder(name=t, role="admin", tenant=t, keys=[key]) for t, (_, key) in texts.items()])
    blue, red, green = ({"x-api-key": text} for text, _ in texts.values())
    ask = {"user_id": "ada", "targets": known[:1]}
    with service(predictor, tmp_path, keys) as api:
        assert counts(send(api, logged("1", question=known[0]), **blue)) == (1, 0, 0)
        assert counts(send(api, logged("1", question=known[1]), **red)) == (1, 0, 0)
        assert post(api, ask, **green).json()["cold_start"] is True
        assert api.get(f"{USERS}/ada", headers=green).status_code == 404
        assert sum(api.delete(f"{USERS}/ada", headers=green).json()["removed"].values()) == 0
        for own in (blue, red):
            assert api.get(f"{USERS}/ada", headers=own).json()["answers"] == 1
            assert post(api, ask, **own).json()["cold_start"] is False


def test_tenants_without_a_key_for_names_are_told_what_is_missing(predictor, tmp_path):
    text, key = make(utc_now(), None)
    keys = Keys(holders=[Holder(name="blue", role="admin", tenant="blue", keys=[key])])
    with service(predictor, tmp_path, keys, privacy=Privacy()) as api:
        asked = api.get(f"{USERS}/ada", headers={"x-api-key": text})
        for answer in (send(api, logged(), **{"x-api-key": text}), asked):
            assert answer.status_code == 503
            assert "DKT_PRIVACY_KEY is not set" in answer.json()["detail"]


def test_no_raw_id_is_stored(predictor, tmp_path):
    with service(predictor, tmp_path) as api:
        send(
            api, logged("event of Ada-Lovelace", "Ada-Lovelace"), logged("w Ada-Lovelace", "Ada-Lovelace", correct=None)
        )
        post(api, {"user_id": "Ada-Lovelace", "targets": ["q"]})
        assert b"Lovelace" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert PRIVACY.user("Ada-Lovelace").encode() in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_log_that_cannot_be_reached_is_a_503_that_may_be_tried_again(predictor, known, tmp_path, monkeypatch):
    with service(predictor, tmp_path) as api:

        def fail(*args):
            raise UnavailableError("the database does not answer now")

        for part, name in (("SqlEventLog", "append"), ("SqlHistories", "get")):
            monkeypatch.setattr(f"dkt_ray.events.sql.{part}.{name}", fail)
        for answer in (
            send(api, logged()),
            post(api, {"user_id": "ada", "targets": known[:1]}),
            api.get(f"{USERS}/ada"),
        ):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
        batch = post(api, {"students": [{"user_id": "ada", "targets": known[:1]}]}, "/v1/predict:batch")
        assert batch.json()["items"][0]["status"] == 503


def test_writers_that_wait_stop_no_reader_and_do_not_grow_without_bound(predictor, known, tmp_path, monkeypatch):
    held, turns, append = Event(), Semaphore(MOST_WRITES), SqlEventLog.append

    def waits(*args):
        held.wait()
        return append(*args)

    with service(predictor, tmp_path, turns=turns) as api, ThreadPoolExecutor(MOST_WRITES + 1) as senders:
        assert counts(send(api, logged("0", question=known[0]))) == (1, 0, 0)
        monkeypatch.setattr(SqlEventLog, "append", waits)
        try:
            sent = [senders.submit(send, api, logged(str(1 + i))) for i in range(MOST_WRITES)]
            until(turns.locked)
            reader = senders.submit(post, api, {"user_id": "ada", "targets": known[:1]})
            assert reader.result(timeout=60).status_code == 200
            more = senders.submit(send, api, logged("more"))
            assert more.result(timeout=60).status_code == 429
        finally:
            held.set()
        assert [counts(each.result()) for each in sent] == [(1, 0, 0)] * MOST_WRITES


def test_bundles_that_were_trained_on_a_deleted_user_are_named(predictor, tmp_path):
    marks = []
    with service(predictor, tmp_path, mark_bundles=lambda mark: marks.append(mark) or ["d" * 64]) as api:
        assert api.delete(f"{USERS}/ada").json()["bundles"] == ["d" * 64]
    assert marks == [PRIVACY.mark(PRIVACY.user("ada"))]


def test_without_a_database_users_are_refused_with_the_remedy(client, known):
    answer = post(client, {"user_id": "ada", "targets": known[:1]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/user_id"
    for answer in (
        send(client, logged()),
        client.get(COUNT),
        client.get(f"{USERS}/ada"),
        client.delete(f"{USERS}/a/b"),
    ):
        assert answer.status_code == 404
        assert "start it with `events`" in answer.json()["detail"]


def test_a_stored_user_is_asked_of_his_bundle_and_at_the_time_that_is_given(predictor, known, tmp_path):
    asked, times = [], []
    memory = Memory.of(open_events(f"sqlite:///{tmp_path}/events.db", PRIVACY), privacy=PRIVACY)

    async def answer(query):
        times.append(query.at)
        return predictor.answer([query])[0]

    def choose(student):
        asked.append(student)
        return Served(predictor, answer)

    with TestClient(build_app(choose, memory=memory)) as client:
        asked.clear()
        post(client, {"user_id": "ada", "targets": known[:1]})
        post(client, {"user_id": "ada", "student": "s", "targets": known[:1], "at": "2026-03-02T16:00:00Z"})
    memory.close()
    assert asked == [PRIVACY.user("ada"), "s"]
    assert times == [None, 1772467200000]


def test_openapi_examples_of_the_routes_run_in_their_order(api):
    paths = api.get("/openapi.json").json()["paths"]
    assert {"/v1/events", "/v1/events/count", "/v1/users/{user_id}"} <= set(paths)
    examples = paths[EVENTS]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for title, example in examples.items():
        assert post(api, example["value"], EVENTS).status_code == 200, title
