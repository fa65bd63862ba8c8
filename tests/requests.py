"""Requests of the HTTP API as tests send them."""

import json


def post(client, body, path="/v1/predict", **headers):
    content = body if isinstance(body, bytes | str) else json.dumps(body)
    return client.post(path, content=content, headers={"content-type": "application/json"} | headers)


def event(question="q", correct=1, **more):
    return {"question": question, "correct": correct} | more
