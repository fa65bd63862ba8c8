"""`dkt report`: the page shows what the run holds, alone and in parts, and stays small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dkt_ray import cli
from dkt_ray.errors import NotFoundError
from dkt_ray.models.base import Between
from dkt_ray.models.catalog import CATALOG
from dkt_ray.pipelines import experiment, experiment_page
from dkt_ray.pipelines.experiment import ReportConfig
from dkt_ray.pipelines.experiment_page import scale
from dkt_ray.storage import Store, open_store
from tests.unit.test_report import REPORT, Page

FAMILIES = ("lightgbm", "lstm_attention", "bert", "saint")
TRIALS, REPORTS = 25, 50
REASON = "width 32 is not a multiple of heads <64>"


def settings_of(family: str, rng: np.random.Generator) -> dict[str, Any]:
    """The family's settings, those of its space drawn at random."""
    drawn = {}
    for name, domain in CATALOG[family].space.items():
        if not isinstance(domain, Between):
            drawn[name] = domain.values[rng.integers(len(domain.values))]
        else:
            place = rng.random()
            linear = domain.low + place * (domain.high - domain.low)
            value = domain.low * (domain.high / domain.low) ** place if domain.log else linear
            drawn[name] = int(value) if domain.integer else float(value)
    return CATALOG[family].config().model_dump(mode="json") | drawn


def trials_of(family: str, trials: int, reports: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Trials whose AUROC depends on the learning rate; the last one failed."""
    rows = []
    for number in range(trials):
        settings = settings_of(family, rng)
        end = 0.78 - 0.01 * abs(float(np.log10(settings["learning_rate"])) + 2) + 0.001 * rng.random()
        length = reports if number % 2 else max(1, reports // 5)
        curve = (end - 0.05 * np.exp(-np.arange(length) / 5)).tolist()
        status = "finished" if number % 2 else "stopped"
        row = {"family": family, "trial": f"{family}{number:02}", "config": json.dumps(settings), "digest": "d"}
        row |= {"iterations": length, "best_iteration": length, "seconds": 12.5, "curve": curve, "reason": ""}
        rows.append(row | {"status": status, "auc": curve[-1]})
    return [*rows[:-1], rows[-1] | {"status": "failed", "auc": None, "curve": [], "reason": REASON}]


def make_sweep(store: Store, run: str, trials: int = TRIALS, reports: int = REPORTS) -> None:
    """What `dkt tune` leaves of trials and members."""
    rng, folder = np.random.default_rng(3), store.child(f"runs/{run}")
    rows = [row for family in FAMILIES for row in trials_of(family, trials, reports, rng)]
    folder.write_table("trials.parquet", pa.Table.from_pylist(rows))
    for family in FAMILIES:
        config = CATALOG[family].config().model_dump(mode="json") | {"learning_rate": 0.0123}
        facts = {"name": family, "family": family, "origin": "trial 1", "config": config, "auc": 0.78, "seeds": 1}
        folder.write_json(f"members/{family}/member.json", facts | {"best_iteration": 20, "score_us": 21.25})


def make_ensemble(store: Store, run: str) -> None:
    """What `dkt ensemble` leaves."""
    bins = [{"probability": share, "right": share**1.1, "rows": 100} for share in (0.1, 0.5, 0.9)]
    calibration = {"log_loss": 0.5123, "ece": 0.0123, "bins": bins}
    told = {"calibrator": "isotonic", "before": calibration, "after": calibration | {"ece": 0.0012}, "stability": {}}
    told["removals"] = [{"member": "bert", "cost": 0.0001, "dropped": True}]
    told["score_us"] = {"lightgbm": 3.0, "bert": 400.0, "ensemble": 3.0}
    store.write_json(f"runs/{run}/report.json", REPORT | {"ensemble": told})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def page_of(store: Store, run: str) -> tuple[dict[str, Any], str, Page]:
    result = experiment.run(ReportConfig(store=store.url, run=run))
    html = store.read(f"runs/{run}/experiment.html").decode()
    page = Page()
    page.feed(html)
    assert not page.open
    return result, html, page


def test_a_whole_sweep_is_on_one_small_page_that_loads_nothing(store: Store) -> None:
    make_sweep(store, "all")
    make_ensemble(store, "all")
    store.write_json("ledger/1.json", {"who": "ann", "when": "2026", "why": "<b>paper</b>", "dataset": "d"})
    result, html, page = page_of(store, "all")
    assert result["bytes"] == len(html.encode()) < 5_000_000
    assert result["missing"] == []
    assert result["trials"] == {"stopped": 48, "finished": 48, "failed": 4}
    assert "script" not in page.tags
    assert [link for link in page.links if not link.startswith(("#", "data:"))] == ["report.html"]
    rows = [row for row in page.rows if row and row[0] in FAMILIES]
    assert len([row for row in rows if "failed" in row]) == len(FAMILIES)
    assert "heads &lt;64&gt;" in html
    assert "&lt;b&gt;paper&lt;/b&gt;" in html  # the ledger as it is now, not as it was when the ensemble was made
    assert html.count("Openings of a test vault") == 1
    assert "learning_rate=0.0123" in html  # a member's, which is not the default
    assert "What is served" in html
    assert "isotonic" in html
    assert html.count("Importance of settings") == html.count("Parallel coordinates") == len(FAMILIES)
    assert html.count('class="q4 best"') == 2 * len(FAMILIES)


def test_trials_are_listed_from_the_best_to_those_that_failed(store: Store) -> None:
    make_sweep(store, "all", trials=10)
    rows = experiment_page.leaderboard(
        {name: [t | {"settings": json.loads(t["config"])} for t in trials] for name, trials in by_family(store).items()}
    )
    scores = [row["auc"] for row in rows if row["auc"] is not None]
    assert scores == sorted(scores, reverse=True)
    assert [row["status"] for row in rows[len(scores) :]] == ["failed"] * len(FAMILIES)
    assert all(row["reason"] == REASON for row in rows[len(scores) :])
    assert set(rows[0]["told"]) == set(CATALOG[rows[0]["family"]].space)


def by_family(store: Store) -> dict[str, list[dict[str, Any]]]:
    rows = store.read_table("runs/all/trials.parquet").to_pylist()
    return {family: [row for row in rows if row["family"] == family] for family in FAMILIES}


def test_a_run_with_some_parts_says_what_is_missing_and_what_makes_it(store: Store) -> None:
    make_sweep(store, "few", trials=3, reports=1)
    result, html, _ = page_of(store, "few")
    assert result["missing"] == ["ensemble"]
    assert f"dkt ensemble --set store={store.url} --set run=few" in html
    assert f"2 trials with an AUROC: importance needs {experiment_page.LEAST}" in html
    make_ensemble(store, "scored")
    result, html, _ = page_of(store, "scored")
    assert result["missing"] == ["trials", "members"]
    assert "dkt tune --set" in html
    store.write_json("runs/old/report.json", REPORT)
    assert "Correlation of" in page_of(store, "old")[1]


def test_a_run_of_dkt_train_links_its_own_report(store: Store) -> None:
    facts = {"family": "bert", "auc": 0.7, "fold": 0, "iterations": 3}
    store.write_json("runs/single/trained/mine/train.json", facts)
    result, _, page = page_of(store, "single")
    assert result["missing"] == []
    assert "trained/mine/report.html" in page.links


def test_trials_that_all_failed_or_were_all_alike_have_a_page(store: Store) -> None:
    row = {"family": "gone", "trial": "1", "config": '{"a": 1}', "status": "stopped", "iterations": 1, "reason": "x"}
    row |= {"best_iteration": 1, "seconds": 1.0, "curve": [0.7], "auc": 0.7, "digest": "d"}
    store.write_table("runs/alike/trials.parquet", pa.Table.from_pylist([row] * 9))
    assert "importance needs" in page_of(store, "alike")[1]
    failed = [row | {"auc": None, "curve": None, "status": "failed"}] * 2
    schema = pa.table({"curve": pa.array([[0.5]]), "auc": [0.5]}).schema
    kinds = [(name, schema.field(name).type if name in schema.names else None) for name in row]
    columns = {name: pa.array([each[name] for each in failed], kind) for name, kind in kinds}
    store.write_table("runs/failed/trials.parquet", pa.table(columns))
    assert "None has an AUROC" in page_of(store, "failed")[1]


def test_a_run_that_is_not_there_is_named_with_those_that_are(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotFoundError, match=r"no run 'x' in .*make one with dkt tune"):
        experiment.run(ReportConfig(store=store.url, run="x"))
    make_sweep(store, "here", trials=2, reports=2)
    assert cli.main(["report", "x", "--set", f"store={store.url}"]) == 2
    assert "runs there: here" in capsys.readouterr().err
    assert cli.main(["report", "here", "--set", f"store={store.url}"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == f"{store.url}/runs/here/experiment.html"


def test_values_find_their_place_on_an_axis() -> None:
    assert scale("n", [1, 2, 5])[1] == [0.0, 0.25, 1.0]
    assert scale("n", [0, 2, 4], log=True)[1] == [0.0, 0.5, 1.0]  # no logarithm of zero
    axis, places = scale("n", [0.1, 0.001, 0.01], log=True)
    assert places == pytest.approx([1.0, 0.0, 0.5])
    assert [label for _, label in axis.ticks] == ["0.001", "0.01", "0.1"]
    axis, places = scale("n", [True, None, "a", True])
    assert len(set(places)) == len(axis.ticks) == 3
    assert scale("n", [3, 3])[1] == [0.0, 0.0]
