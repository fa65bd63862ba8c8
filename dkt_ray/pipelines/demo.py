"""(Ray) `dkt demo`: the whole path on one machine, from logs to a served ensemble with a web page.

Each stage is the job of the same name with settings that suit a laptop; a second run reuses what has not changed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any, Final

import httpx
import numpy as np
from pydantic import Field, field_validator
from ray import serve
from ray.serve.exceptions import RayServeException

from dkt_ray.config import Config
from dkt_ray.data.ingest import DataConfig
from dkt_ray.data.simulate import SimulateConfig
from dkt_ray.errors import DktError
from dkt_ray.features.dataset import Dataset
from dkt_ray.features.encoder import EncoderConfig
from dkt_ray.pipelines import blend, prepare, publish, simulate, sweep
from dkt_ray.pipelines.staged import Stages
from dkt_ray.serving import rollout
from dkt_ray.serving.fleet import is_loopback
from dkt_ray.storage import open_store
from dkt_ray.storage.aws import SCHEME
from serve_app.demo import DemoPageArgs, demo

logger = logging.getLogger(__name__)

STAGES: Final = ("simulate", "prepare", "tune", "ensemble", "publish", "serve", "ask")
RUN: Final = "demo"
PAGE: Final = "demo"
ASKED: Final = 100  # students among whom one with a long history is looked for
# What a search on two cores has time for.
QUICK: Final[dict[str, dict[str, Any]]] = {
    "lightgbm": {"rounds": 200, "patience": 25, "learning_rate": 0.1},
    "lstm_attention": {"width": 32, "layers": 1, "batch_rows": 4096, "epochs": 3, "patience": 1},
}


class DemoConfig(Config):
    """Settings of `dkt demo`."""

    store: str = "data/demo"
    """Folder or s3://bucket/prefix for everything that the demo makes."""
    data: DataConfig | None = None
    """Logs of your own (`data.path=...`); unset: a simulated platform."""
    encoder: EncoderConfig = EncoderConfig()
    users: int = Field(default=500, ge=30)
    """Simulated students."""
    bank_fraction: float = Field(default=0.25, gt=0, le=1)
    """Share of the full question bank: fewer questions, more answers to each."""
    folds: int = Field(default=3, ge=2)
    """User folds, where `data` has neither `folds` nor `split_file`."""
    trials: int = Field(default=4, ge=1)
    """Trials per model family."""
    families: tuple[str, ...] = tuple(QUICK)
    """Model families of the ensemble."""
    overrides: dict[str, dict[str, Any]] = Field(default=QUICK)
    """Fixed settings of the families, as in `dkt tune`."""
    seed: int = 0
    stay: bool = True
    """Serve until Ctrl-C; false: answer one request, print the result and end."""
    host: str = "127.0.0.1"
    """Of this machine only: the page takes no API key, and keeps answers where its visitors ask for it."""
    port: int = Field(default=8000, ge=1, le=65535)

    @field_validator("host")
    @classmethod
    def _of_this_machine(cls, host: str) -> str:
        if not is_loopback(host):
            raise ValueError("others reach it, and the demo is open to all; use 127.0.0.1, or `dkt rollout`")
        return host


def run(config: DemoConfig) -> dict[str, Any]:
    """Simulate (or read logs), prepare, sweep, weigh, publish, serve, ask; then stay until interrupted.

    Returns:
        rows, users, auc (by family, ensemble, counting, ...), auc_interval, weights, bundle, probability (answered by
        the HTTP endpoint), seconds (by stage), addresses.
    """
    stages = Stages("demo", len(STAGES) - (config.data is not None))  # one's own logs are not simulated
    truth = None
    data = config.data
    if data is None:
        out = f"{config.store}/simulated"
        stages.run("simulate", lambda: _simulate(config, out))
        data, truth = DataConfig(path=f"{out}/train_data.csv"), f"{out}/truth.parquet"
    if data.folds is None and data.split_file is None:
        data = data.model_copy(update={"folds": config.folds})
    made = stages.run(
        "prepare",
        lambda: prepare.run(prepare.PrepareConfig(store=config.store, dataset=RUN, data=data, encoder=config.encoder)),
    )
    stages.run("tune", lambda: sweep.run(_tune_config(config)))
    weighed = stages.run(
        "ensemble",
        lambda: blend.run(
            blend.EnsembleConfig(store=config.store, dataset=RUN, run=RUN, truth=truth, at_least=len(config.families))
        ),
    )
    published = stages.run(
        "publish", lambda: publish.run(publish.PublishConfig(store=config.store, dataset=RUN, run=RUN))
    )
    with contextlib.ExitStack() as served:
        address = stages.run("serve", lambda: served.enter_context(_serving(config, published["bundle"])))
        probability = stages.run("ask", lambda: _ask(config, address))
        logger.info("report: %s", weighed["report"])
        logger.info("page:   %s/%s", address, PAGE)
        logger.info("API:    %s/docs", address)
        if config.stay:
            logger.info("serving until Ctrl-C")
            _wait_for_interrupt()
    return {
        "rows": made["rows"],
        "users": made["users"],
        "auc": weighed["auc"],
        "auc_interval": weighed["auc_interval"],
        "weights": weighed["weights"],
        "bundle": published["bundle"],
        "probability": probability,
        "seconds": stages.seconds,
        "addresses": {"page": f"{address}/{PAGE}", "docs": f"{address}/docs"},
    }


def _simulate(config: DemoConfig, out: str) -> dict[str, Any]:
    """The platform's files, unless the same ones are there."""
    settings = SimulateConfig(users=config.users, bank_fraction=config.bank_fraction, seed=config.seed, out=out)
    store = open_store(out)
    if store.exists("manifest.json"):
        manifest = store.read_json("manifest.json")
        if manifest["config"] == settings.model_dump(mode="json"):
            return {"rows": manifest["rows"], "users": manifest["users"], "reused": True}
    return simulate.run(settings)


def _tune_config(config: DemoConfig) -> sweep.TuneConfig:
    """A short search: settings that suit two cores, and a few variations of them."""
    return sweep.TuneConfig(
        store=config.store,
        dataset=RUN,
        run=RUN,
        trials=config.trials,
        families=config.families,
        seed=config.seed,
        overrides=config.overrides,
    )


@contextlib.contextmanager
def _serving(config: DemoConfig, bundle: str) -> Iterator[str]:
    """The API with the bundle, and the page beside it, for as long as the context lasts; gives the address."""
    store = open_store(config.store)
    kept = {} if store.url.startswith(SCHEME) else {"events": f"sqlite:///{store.url}/events.db"}
    settings = rollout.RolloutConfig(
        bundle=bundle,
        store=config.store,
        host=config.host,
        port=config.port,
        gate=False,
        replicas=kept,
        reason="dkt demo",
    )
    try:
        address: str = rollout.run(settings)["address"]
        serve.run(demo(DemoPageArgs(api=address, keeps=True)), name=PAGE, route_prefix=f"/{PAGE}")
        yield address
    finally:
        with contextlib.suppress(RayServeException):  # Serve did not come up
            for name in (PAGE, rollout.APPLICATION):
                serve.delete(name)


def _ask(config: DemoConfig, address: str) -> float:
    """A request as a client would make it: a training student's first answers, and the question that came next."""
    histories = Dataset.open(open_store(config.store), RUN).sample(ASKED)
    longest = np.array([np.argmax(histories.lengths)])
    known = histories.select(longest).head(np.array([20]))
    question, answer = known.question.strings().tolist(), known.correct.tolist()
    body = {
        "history": [{"question": q, "correct": a} for q, a in zip(question[:-1], answer, strict=False) if a >= 0],
        "targets": [question[-1]],
    }
    answered = httpx.post(f"{address}/v1/predict", json=body, timeout=30, trust_env=False)
    if answered.status_code != httpx.codes.OK:
        raise DktError(f"POST {address}/v1/predict answered {answered.status_code}: {answered.text[:300]}")
    logger.info("curl -s %s/v1/predict -H 'content-type: application/json' -d '%s'", address, json.dumps(body))
    return float(answered.json()["predictions"][0]["probability"])


def _wait_for_interrupt() -> None:
    """Block until Ctrl-C (or SIGTERM, which the command line turns into the same)."""
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
