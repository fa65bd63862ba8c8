"""(Ray) The `api` application: FastAPI fused with the predictor in one replica, autoscaled, with dynamic batching.

A bundle is an argument of the application: other bundle, other replicas. They start before the old ones stop.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Final, Literal

from fastapi import FastAPI
from pydantic import Field, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from dkt_ray.config import Config
from dkt_ray.registry.store import Registry, resolve
from dkt_ray.serving.breaker import BreakerConfig
from dkt_ray.serving.contract import MAX_ROWS, ScoreSets
from dkt_ray.serving.loopback import keep_on_loopback
from dkt_ray.serving.traffic import Findings, Traffic
from dkt_ray.storage import open_store

DEPLOYMENT: Final = "predictor"
REPORT_S: Final = 2.0  # between reports of load; the variables that Ray 2.60 names instead of this setting do nothing
LOOK_BACK_S: Final = 3 * REPORT_S  # a downscale delay below it makes replicas come and go


class ServeArgs(Config):
    """Arguments of the `api` application."""

    store: str = "data/store"
    """Folder or s3://bucket/prefix."""
    bundle: str = "champion"
    """Digest of a bundle, or an alias: read once, when the application is built."""
    challenger: str | None = None
    """Digest or alias of a second bundle, loaded beside it while `dkt rollout` tries it out."""
    cache: str | None = None
    """Local folder for copies of bundles; unset: one in the system's temporary folder."""
    events: str | None = None
    """Database of events, without a password in it (PGPASSWORD, .pgpass): sqlite:////PATH where all replicas are on one
    machine, postgresql+psycopg://HOST/DATABASE for more. DKT_EVENTS_URL in the replicas' environment counts more.
    Unset: no events are kept, and requests bring their histories along."""
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=2, ge=1)
    target_ongoing_requests: float = Field(default=8.0, gt=0)
    """Requests per replica that autoscaling aims at."""
    upscale_delay_s: float = Field(default=2.0, ge=0)
    """How long the load must be above the target before replicas are added."""
    downscale_delay_s: float = Field(default=120.0, ge=LOOK_BACK_S)
    max_batch_requests: int = Field(default=32, ge=1)
    """Requests that are scored in one pass."""
    max_waiting_rows: int = Field(default=4 * MAX_ROWS, ge=1)
    """Events and targets that wait in one replica; a request beyond that is answered with 429."""
    max_ongoing_requests: int = Field(default=64, ge=1)
    """Requests that one replica works on at a time."""
    max_queued_requests: int = Field(default=256, ge=1)
    """Requests that wait for a replica; more are answered with 429."""
    score_sets: ScoreSets = Field(default={})
    """Name -> questions of a set that `/v1/score` can be asked for; `default`: the 100 most answered ones."""
    num_cpus: float = Field(default=0.5, gt=0)
    """Logical CPUs that a replica reserves."""
    graceful_shutdown_s: float = Field(default=20.0, gt=0)
    """How long a replica that leaves may finish its requests."""
    keys: Literal["auto", "required"] = "auto"
    """API keys (`dkt keys`) are asked for where there are any; auto: without any, nothing is served off loopback;
    required: not there either, as behind a proxy with TLS."""
    breaker: BreakerConfig = BreakerConfig()
    """When a member of the ensemble that fails is left out."""
    access_log: bool = True
    """A line of JSON per request on each replica's stderr, which Ray keeps among its logs."""

    @property
    def copies(self) -> Path | None:
        """As `registry.cache.local_copy` takes it."""
        return Path(self.cache) if self.cache else None

    @model_validator(mode="after")
    def _ordered(self) -> ServeArgs:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


@serve.ingress()
class Replica:
    """One process that serves one bundle, or two in a rollout; it is ready when they are verified and warm."""

    def __init__(self, args: ServeArgs, digest: str, challenger: str | None = None) -> None:
        keep_on_loopback()
        self._args = args.model_copy(update={"bundle": digest, "challenger": challenger})
        gc.disable()  # a start drops next to nothing of what it makes: collections took a quarter of it
        try:
            from dkt_ray.serving.replica import Loaded  # only here: whoever deploys goes without, and it loads here too

            self._loaded = Loaded(self._args)
        finally:
            gc.freeze()  # what is loaded stays: collections that go through it cost requests a pause of 0.2 s
            gc.enable()

    def __del__(self) -> None:
        """Serve's hook, for when a replica has finished its requests."""
        if loaded := getattr(self, "_loaded", None):
            loaded.close()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve's hook: the app is made in the replica, after the bundle was loaded."""
        return self._loaded.app()

    def direct(self, traffic: Traffic) -> Findings:
        """Deal requests between champion and challenger; see `Split.direct`."""
        return self._loaded.split.direct(traffic)

    def arguments(self) -> ServeArgs:
        """What this replica runs, its bundle as a digest: what a rollout goes back to."""
        return self._args

    def check_health(self) -> None:
        """Raise when scoring hangs: a thread cannot be stopped, a replica can. Serve asks every few seconds."""
        self._loaded.check_health()


def application(args: ServeArgs, surge: bool = True) -> Application:
    """The `api` application for `serve.run` and `serve deploy`.

    Args:
        surge: new replicas start before old ones stop; False: the old ones make room first.

    Raises:
        NotFoundError: no such bundle or alias in the store.
    """
    deployment = serve.deployment(
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": args.num_cpus},
        autoscaling_config=AutoscalingConfig(  # without initial_replicas: each deployment would go back to them
            min_replicas=args.min_replicas,
            max_replicas=args.max_replicas,
            target_ongoing_requests=args.target_ongoing_requests,
            metrics_interval_s=REPORT_S,
            look_back_period_s=LOOK_BACK_S,
            upscale_delay_s=args.upscale_delay_s,
            downscale_delay_s=args.downscale_delay_s,
        ),
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=args.graceful_shutdown_s,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config=LoggingConfig(enable_access_log=False),  # ours says more
        health_check_period_s=5,
        health_check_timeout_s=20,
        max_constructor_retry_count=2,
        rolling_update_percentage=1.0,
        max_surge_percent=100 if surge else 0,
    )(Replica)
    registry = Registry(open_store(args.store))
    places = {
        "store": registry.store.url,
        "cache": args.cache and str(Path(args.cache).absolute()),
        "events": args.events and _absolute(args.events),
    }
    args = args.model_copy(update=places)  # replicas have working folders of their own
    challenger = resolve(registry, args.challenger) if args.challenger else None
    return deployment.bind(args, resolve(registry, args.bundle), challenger)


def _absolute(url: str) -> str:
    """The url of a SQLite file, wherever it is read; others as they are."""
    scheme, slashes, path = url.partition(":///")
    return f"{scheme}{slashes}{Path(path).absolute()}" if scheme == "sqlite" and path else url
