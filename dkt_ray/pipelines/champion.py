"""(Ray) `dkt champion`: from logs to the published champion in one command: prepare, tune, ensemble, publish.

Each stage is the job of the same name and reuses what has not changed, so the same command goes on after a kill.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, Self

import ray
from pydantic import Field, model_validator

from dkt_ray.config import Config
from dkt_ray.data.ingest import DataConfig
from dkt_ray.features.encoder import EncoderConfig
from dkt_ray.metrics import Estimate, paired_difference
from dkt_ray.pipelines import blend, prepare, publish, sweep
from dkt_ray.pipelines.blend import EnsembleConfig
from dkt_ray.pipelines.report import REPORT, read_report
from dkt_ray.pipelines.staged import Stages
from dkt_ray.pipelines.stored_chain import read_facts
from dkt_ray.pipelines.sweep import TuneConfig
from dkt_ray.storage import Store, open_store
from dkt_ray.training.protocol import Scored, align_members, oof_key
from dkt_ray.training.selection import SHIFT, STOPPING_FOLD

logger = logging.getLogger(__name__)

STAGES: Final = ("prepare", "tune", "ensemble", "publish")
SHARED: Final = ("store", "dataset", "run")  # settings of every stage, given once
SHOWN: Final = ("ensemble", "member")  # kinds of models whose AUC is printed


class ChampionConfig(Config):
    """Settings of `dkt champion`."""

    store: str = "data/store"
    """Folder or s3://bucket/prefix for all stages."""
    dataset: str = "default"
    """Name of the dataset that is prepared."""
    run: str = Field(default="champion", pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run whose members become the champion."""
    data: DataConfig
    encoder: EncoderConfig = EncoderConfig()
    context: int = Field(default=100, ge=1)
    """Rows of a context block; see `dkt prepare`."""
    tune: TuneConfig = TuneConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    promote: bool = True
    """Move the alias to the bundle, without a rollout: a service that runs is moved by `dkt rollout`."""
    alias: str = "champion"
    """Alias that is moved."""

    @model_validator(mode="after")
    def _given_once(self) -> Self:
        for name, section in (("tune", self.tune), ("ensemble", self.ensemble)):
            for setting in SHARED:
                if setting in section.model_fields_set:
                    raise ValueError(
                        f"{name}.{setting} is {getattr(section, setting)!r}: all stages share one {setting}; "
                        f"give it as {setting}, not below {name}"
                    )
        return self


def run(config: ChampionConfig) -> dict[str, Any]:
    """Prepare, tune, combine and publish; what an earlier call finished is reused.

    Returns:
        bundle (digest), alias (that points to it, or null), auc ({name: {"value", "low", "high"}} of members and
        ensembles, out of fold), against_default ({family: the same of its tuned member's AUC minus its default's};
        null without `tune.defaults`), report, seconds (by stage), next (the command that makes the final figure).

    Raises:
        DktError: of the stage that could not be done; those before it are kept.
    """
    stages = Stages("champion", len(STAGES))
    shared = {name: getattr(config, name) for name in SHARED}
    store = open_store(config.store)
    folder = store.child(f"runs/{config.run}")
    stages.run("prepare", lambda: prepare.run(_prepare_config(config)))
    stages.run("tune", lambda: sweep.run(config.tune.model_copy(update=shared)))
    weighed = stages.run("ensemble", lambda: blend.run(config.ensemble.model_copy(update=shared)))
    report = read_report(folder, REPORT)
    assert report is not None
    settings = publish.PublishConfig(**shared, promote=config.promote, alias=config.alias)
    bundle = stages.run("publish", lambda: publish.run(settings))["bundle"]
    which = config.alias if config.promote else bundle
    command = (
        f"dkt evaluate --set store={config.store} --set dataset={config.dataset} --set run={config.run} "
        f"--set bundle={which} --set final=true --set reason='final figure of the champion'"
    )
    logger.info("champion: the test users are untouched; open their vault once, for the final figure: %s", command)
    return {
        "bundle": bundle,
        "alias": config.alias if config.promote else None,
        "auc": {name: model["auc"] for name, model in report["models"].items() if model["kind"] in SHOWN},
        "against_default": _against_defaults(config, folder),
        "report": weighed["report"],
        "seconds": stages.seconds,
        "next": command,
    }


def against_default(tuned: Scored, default: Scored, samples: int, seed: int) -> Estimate:
    """AUC of a family's tuned member minus that of its default settings, out of fold.

    The users whose answers the trials were compared on are left out: there the best of many looks better than it is.

    Args:
        tuned: out-of-fold scores.
        default: of the same rows.
        samples: resamples of the users.
        seed: of the bootstrap.

    Raises:
        ConfigError: they are of different rows.
    """
    base, columns = align_members({"tuned": tuned, "default": default})
    kept = base.headline & (base.fold != STOPPING_FOLD)
    return paired_difference(
        base.correct[kept], columns[kept, 0], columns[kept, 1], base.user.codes[kept], samples, seed
    )


def _prepare_config(config: ChampionConfig) -> prepare.PrepareConfig:
    return prepare.PrepareConfig(
        store=config.store, dataset=config.dataset, data=config.data, encoder=config.encoder, context=config.context
    )


def _against_defaults(config: ChampionConfig, folder: Store) -> dict[str, Estimate | None]:
    """The gain of tuning, per family; None where its default settings were not fitted."""
    facts = read_facts(folder, None)
    pairs = {family: (family, default_of(family, facts)) for family in config.tune.families}
    task = ray.remote(_compare)
    running = {
        family: task.remote(folder, tuned, default, config.ensemble.samples, config.ensemble.seed)
        for family, (tuned, default) in pairs.items()
        if default is not None
    }
    found: dict[str, Estimate | None] = {
        family: ray.get(running[family]) if family in running else None for family in pairs
    }
    for family, gain in found.items():
        if gain is not None:
            logger.info("champion: %s, tuned against its default: %s", family, _told(pairs[family], gain))
    return found


def default_of(family: str, facts: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Name of the family's member that has its default settings; it may be the tuned one itself, not a shift form."""
    own = (name for name, fact in facts.items() if fact["family"] == family and fact["default"])
    return next((name for name in own if not name.endswith(f"-{SHIFT}")), None)


def _compare(folder: Store, tuned: str, default: str, samples: int, seed: int) -> Estimate:
    """Runs in a Ray worker."""
    scored = [Scored.from_table(folder.read_table(oof_key(name)), name) for name in (tuned, default)]
    return against_default(scored[0], scored[1], samples, seed)


def _told(pair: tuple[str, str | None], gain: Estimate) -> str:
    if pair[0] == pair[1]:
        return "no trial was better than the default"
    if gain["value"] is None or gain["low"] is None or gain["high"] is None:
        return "not known: too few users"
    verdict = "better" if gain["low"] > 0 else "worse" if gain["high"] < 0 else "no clear difference"
    return f"{gain['value']:+.4f} auc ({gain['low']:+.4f} to {gain['high']:+.4f}): {verdict}"
