"""A small bundle and the HTTP API around it, made once."""

import pytest
from fastapi.testclient import TestClient

from dkt_ray.serving.api import Served, build_app
from dkt_ray.serving.predictor import Predictor
from tests import bundles
from tests.requests import service


@pytest.fixture(scope="session")
def predictor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    bundles.build(folder / "bundle", bundles.save_members(folder / "members"))
    return Predictor.load(folder / "bundle")


@pytest.fixture(scope="session")
def client(predictor):
    async def answer(query):
        return predictor.answer([query])[0]

    with TestClient(build_app(lambda student: Served(predictor, answer)), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def known(predictor):
    return [row["question"] for row in predictor.catalogue.rows]


@pytest.fixture
def api(predictor, tmp_path):
    """The API with a log of events."""
    with service(predictor, tmp_path) as client:
        yield client
