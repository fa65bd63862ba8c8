"""Every route of the API with every kind of key: what `docs/operations.md` says of it."""

import pytest

from dkt_ray.serving import rights
from dkt_ray.serving.keys import Holder, Keys, make, utc_now
from tests.reliability.cases import Maker
from tests.requests import PRIVACY, post, service

USER = "student-17"  # of the examples' events
NOBODY = "student-18"
NOT_KEPT = {"/v1/outcomes": 404}  # by the service of these tests; others: 200
DAYS = {"late": -1.0}  # others: a day


@pytest.fixture(scope="module")
def door(predictor, tmp_path_factory):
    """The API where the students of tenant `north` are known, its keys, and the body that each route takes."""
    texts, holders = {}, []
    for name, role, tenant in (
        ("reader", "read", "north"),
        ("writer", "write", "north"),
        ("admin", "admin", "north"),
        ("late", "admin", "north"),
        ("revoked", "admin", "north"),
        ("stranger", "admin", "south"),
    ):
        texts[name], key = make(utc_now(), DAYS.get(name, 1.0))
        holders.append(Holder(name=name, role=role, tenant=tenant, burst=1000, keys=(key,)))
    keys = Keys(holders=tuple(each for each in holders if each.name != "revoked"))
    with service(predictor, tmp_path_factory.mktemp("door"), keys) as client:
        maker = Maker.of(client.get("/openapi.json").json())
        bodies = {each.path: maker.bodies(each)[:1] for each in maker.operations}

        def ask(who, method, path, body=None):
            headers = {"authorization": f"Bearer {texts[who]}"} if who else {}
            path = path.replace("{user_id}", USER)
            if method == "POST":
                return post(client, body or bodies[path][0], path, **headers)
            return client.request(method, path, headers=headers)

        assert ask("writer", "POST", "/v1/events").json()["added"] == 1
        yield ask


ORDER = sorted(rights.RIGHTS, key=lambda right: right.method == "DELETE")  # it is the last that is done to a student


@pytest.mark.parametrize("right", ORDER, ids=lambda right: f"{right.method} {right.path}")
def test_each_key_gets_what_its_role_may_and_nothing_else(door, right):
    method, path, needed = right
    for who in (None, "late", "revoked"):
        assert door(who, method, path).status_code == (200 if needed is None else 401), who
    for who, role in (("reader", "read"), ("writer", "write"), ("admin", "admin")):
        allowed = needed is None or rights.may(role, needed)
        assert door(who, method, path).status_code == (NOT_KEPT.get(path, 200) if allowed else 403), who


def test_a_stored_name_leads_to_nobody(predictor, tmp_path):
    """Neither that of one's own student nor that of a tenant's, once the service has no tenants any more."""
    text, key = make(utc_now(), 1.0)
    north = Keys(holders=(Holder(name="n", role="admin", tenant="north", keys=(key,)),))
    ours = Keys(holders=(Holder(name="n", role="admin", keys=(key,)),))
    headers = {"x-api-key": text}
    for keys in (north, ours):
        with service(predictor, tmp_path, keys) as client:
            sent = {"events": [{"event_id": "e", "user_id": "ada", "question": "q", "correct": 1}]}
            assert post(client, sent, "/v1/events", **headers).json()["added"] == 1
    with service(predictor, tmp_path, ours) as client:
        for stored in (PRIVACY.user("ada", "north"), PRIVACY.user("ada")):
            assert client.get(f"/v1/users/{stored}", headers=headers).status_code == 404
            assert post(client, {"user_id": stored, "targets": ["q"]}, **headers).json()["cold_start"]
            assert sum(client.delete(f"/v1/users/{stored}", headers=headers).json()["removed"].values()) == 0
    for keys in (north, ours):
        with service(predictor, tmp_path, keys) as client:
            assert client.get("/v1/users/ada", headers=headers).json()["answers"] == 1


def test_a_student_of_another_tenant_is_one_whom_nobody_knows(door):
    """Before and after: what a stranger does to an id changes nothing for its tenant."""
    events = [{"event_id": f"e{n}", "user_id": "mine", "question": "q", "correct": 1} for n in range(3)]
    assert door("writer", "POST", "/v1/events", {"events": events}).json()["added"] == 3
    mine, unknown = (door("stranger", "GET", f"/v1/users/{user}") for user in ("mine", NOBODY))
    assert (mine.status_code, unknown.status_code) == (404, 404)
    assert mine.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}
    for path in ("/v1/predict", "/v1/knowledge-state", "/v1/recommend", "/v1/score"):
        about = {"targets": ["q"]} if path == "/v1/predict" else {}
        told = [door("stranger", "POST", path, about | {"user_id": user}).json() for user in ("mine", NOBODY)]
        assert told[0] == told[1], path
        assert told[0]["cold_start"], path
        assert not door("reader", "POST", path, about | {"user_id": "mine"}).json()["cold_start"], path
    assert door("stranger", "POST", "/v1/events", {"events": events}).json()["added"] == 3, "ids are per tenant, too"
    gone = [door("stranger", "DELETE", f"/v1/users/{user}") for user in ("mine", NOBODY)]
    assert [each.status_code for each in gone] == [200, 200]
    assert door("reader", "GET", "/v1/users/mine").json()["answers"] == 3
