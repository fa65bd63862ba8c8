"""`dkt outcomes`: how well the bundles foresaw what users answered, and a rollback where the champion got worse."""

from __future__ import annotations

import logging
from typing import Any, Final

from pydantic import Field

from dkt_ray import session
from dkt_ray.config import Config
from dkt_ray.events.database import required_url
from dkt_ray.events.outcomes import WINDOW, Joined, Outcomes, figures, worse_by
from dkt_ray.events.sql import open_events
from dkt_ray.metrics import Estimate
from dkt_ray.privacy import Privacy
from dkt_ray.registry.store import AliasEntry, Registry
from dkt_ray.storage import open_store

logger = logging.getLogger(__name__)

MANIFEST: Final = "its manifest"
BEFORE: Final = "the bundle before"


class RollbackIf(Config):
    """When the champion is taken back."""

    log_loss: float = Field(gt=0)
    """Its live log-loss is higher by more than this, with the whole 95 % interval, than that of the bundle before; or,
    where that has not enough outcomes, than the one of its own manifest, out of fold."""


class OutcomesConfig(Config):
    """Settings of `dkt outcomes`."""

    events: str | None = None
    """The database: sqlite:////PATH or postgresql+psycopg://HOST/DATABASE, without a password (PGPASSWORD or .pgpass);
    the variable DKT_EVENTS_URL, where it is set, wins."""
    store: str = "data/store"
    """Folder or s3://bucket/prefix: the registry."""
    alias: str = "champion"
    """Alias that says which bundle serves."""
    window: int = Field(default=WINDOW, ge=1, le=WINDOW)
    """Latest outcomes of each bundle that count; more are not kept."""
    at_least: int = Field(default=500, ge=1)
    """Outcomes of a bundle below which nothing is concluded from them."""
    rollback_if: RollbackIf | None = None
    """E.g. {log_loss: 0.05}; unset: only look."""
    host: str = "127.0.0.1"
    """Address of the service, for the rollback."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port of the service, for the rollback."""


def run(config: OutcomesConfig) -> dict[str, Any]:
    """Print a table, and roll back where the rule says so.

    Returns:
        bundles (figures of each), champion, against (what it was compared with), worse_by (estimate), rolled_back
        (the result of the rollback, if there was one).

    Raises:
        ConfigError: no database.
        NotFoundError: the alias does not exist, though there is a rule about it.
        RolloutError: the bundle before does not come up.
    """
    opened = open_events(required_url(config.events))
    try:
        outcomes = Outcomes(opened.engine, Privacy.of_environment())
        found = {bundle: outcomes.latest(bundle, config.window) for bundle in outcomes.bundles()}
    finally:
        opened.close()
    registry = Registry(open_store(config.store))
    entry = registry.alias(config.alias)
    told = {bundle: figures(joined) for bundle, joined in found.items()}
    logger.info("%s", table(told, entry.bundle if entry else None))
    against, worse = compared(found, entry, registry, config.at_least)
    rolled_back = None
    if config.rollback_if is not None:
        rolled_back = _judged(against, worse, config.rollback_if.log_loss, config)
    champion = entry.bundle if entry else None
    return {"bundles": told, "champion": champion, "against": against, "worse_by": worse, "rolled_back": rolled_back}


def table(told: dict[str, dict[str, Any]], champion: str | None) -> str:
    """A line per bundle."""
    lines = [f"{'bundle':<14}{'outcomes':>9}{'log-loss':>10}{'AUROC':>8}{'ECE':>8}"]
    for bundle, each in told.items():
        numbers = [_number(each[name], width) for name, width in (("log_loss", 10), ("auc", 8), ("ece", 8))]
        mark = "  champion" if bundle == champion else ""
        lines.append(f"{bundle[:12]:<14}{each['outcomes']:>9}{''.join(numbers)}{mark}")
    return "\n".join(lines) if told else "no outcomes yet"


def compared(
    found: dict[str, Joined], entry: AliasEntry | None, registry: Registry, at_least: int
) -> tuple[str | None, Estimate | None]:
    """What the champion's live log-loss is compared with, and how much higher it is; None where nothing can be said."""
    live = found.get(entry.bundle) if entry else None
    if entry is None or live is None or len(live.correct) < at_least:
        return None, None
    before = found.get(entry.previous) if entry.previous else None
    if before is not None and len(before.correct) >= at_least:
        return BEFORE, worse_by(live, before)
    metric = registry.manifest(entry.bundle)["provenance"]["metrics"].get("log_loss")
    figure = metric.get("value") if isinstance(metric, dict) else metric
    return (MANIFEST, worse_by(live, float(figure))) if figure is not None else (None, None)


def _judged(
    against: str | None, worse: Estimate | None, margin: float, config: OutcomesConfig
) -> dict[str, Any] | None:
    if worse is None or worse["value"] is None or worse["low"] is None:
        logger.info("nothing is concluded: too few outcomes of the champion, or nothing to compare them with")
        return None
    by = f"{worse['value']:+.4f} ({worse['low']:+.4f} to {worse['high']:+.4f}) against {against}"
    if worse["low"] <= margin:
        logger.info(
            "%s stays: log-loss %s; a rollback takes more than %g with the whole interval", config.alias, by, margin
        )
        return None
    logger.warning("%s is taken back: log-loss %s, more than %g is worse", config.alias, by, margin)
    return _roll_back(f"live log-loss {by}", config)


def _roll_back(reason: str, config: OutcomesConfig) -> dict[str, Any]:
    """Needs the cluster of the service."""
    session.prepare_environment()
    from dkt_ray.serving import rollback

    session.connect(running=True)
    settings = {"store": config.store, "alias": config.alias, "host": config.host, "port": config.port}
    return rollback.run(rollback.RollbackConfig.model_validate(settings | {"reason": reason}))


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.4f}"
