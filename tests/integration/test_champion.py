"""`dkt champion` on a real Ray cluster: all stages, one that fails, and the same command again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dkt_ray.config import build
from dkt_ray.errors import ConfigError
from dkt_ray.metrics import auc
from dkt_ray.pipelines import champion
from dkt_ray.registry.store import Registry
from dkt_ray.storage import Store, open_store
from dkt_ray.training.protocol import Scored
from dkt_ray.training.selection import STOPPING_FOLD
from tests.sweep_data import SMALL, prepared

__all__ = ["prepared"]  # a fixture

QUICK = {"lightgbm": SMALL["lightgbm"], "lstm_attention": SMALL["lstm_attention"] | {"epochs": 1, "width": 16}}
MEMBERS = {*QUICK, *(f"{family}-default" for family in QUICK)}


def make(store: Path, logs: Path, **ensemble: Any) -> dict[str, Any]:
    users = pl.read_csv(logs, infer_schema=False)["userID"].unique(maintain_order=True)
    split = ["test" if number % 10 == 0 else f"fold{number % 2 + 1}" for number in range(len(users))]
    file = store / "split.csv"
    pl.DataFrame({"userID": users, "split": split}).write_csv(file)
    values = {
        "store": str(store),
        "data": {"path": str(logs), "split_file": str(file)},
        "tune": {"families": list(QUICK), "trials": 2, "overrides": QUICK, "defaults": True},
        "ensemble": {"samples": 20, "method": "simplex", "drop_below": 0, "tune_trials": 0} | ensemble,
    }
    return champion.run(build(champion.ChampionConfig, values))


def elsewhere(store: Store, name: str) -> float:
    """AUROC of a member outside the fold on which its settings were chosen."""
    scored = Scored.from_table(store.read_table(f"runs/champion/members/{name}/oof.parquet"), name)
    kept = scored.headline & (scored.fold != STOPPING_FOLD)
    found = auc(scored.correct[kept], scored.probability[kept])
    assert found is not None
    return found


def test_one_command_makes_the_champion_and_goes_on_where_it_ended(
    prepared: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logs, store = Path(prepared).parent / "short.csv", open_store(tmp_path)
    with pytest.raises(ConfigError, match="missing: "):  # a stage that cannot be done
        make(tmp_path, logs, method="fixed", ratio={"lightgbm": 1})
    assert store.list("bundles") == store.list("aliases") == []
    caplog.clear()
    with caplog.at_level(logging.INFO):
        made = make(tmp_path, logs)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("champion: stage")]
    reused = [line.split(",")[1].split(":")[0].strip() for line in lines if "nothing has changed" in line]
    assert reused == ["prepare", "tune"]  # what was done before it is not done again
    assert [line for line in lines if "done" not in line] == [
        f"champion: stage {number} of 4, {name}" for number, name in enumerate(champion.STAGES, start=1)
    ]
    tuned = {name for name in MEMBERS if store.exists(f"runs/champion/members/{name}/member.json")}
    assert {"ensemble", *tuned} <= set(made["auc"])
    assert set(QUICK) <= tuned
    for figure in made["auc"].values():
        assert 0 < figure["low"] <= figure["high"] < 1
    facts = {name: store.read_json(f"runs/champion/members/{name}/member.json") for name in tuned}
    for family, gain in made["against_default"].items():
        default = champion.default_of(family, facts)
        assert default is not None
        assert gain["value"] == pytest.approx(elsewhere(store, family) - elsewhere(store, default), abs=1e-12)
        assert gain["low"] <= gain["high"]
    assert set(made["against_default"]) == set(QUICK)
    assert store.read_json("runs/champion/report.json")["evaluation_set"]["folds"] == 2  # as the split file has
    entry = Registry(store).alias("champion")
    assert entry is not None
    assert entry.bundle == made["bundle"]
    assert Path(made["report"]).exists()
    assert "dkt evaluate" in made["next"]
    assert "final=true" in made["next"]
    assert store.list("ledger") == []  # the vault stayed shut

    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = make(tmp_path, logs)
    assert sum("nothing has changed" in record.getMessage() for record in caplog.records) == 3
    assert again | {"seconds": None} == made | {"seconds": None}
