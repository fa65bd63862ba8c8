"""The quality gate: who passes, which condition fails, and who may judge."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dkt_ray.errors import ConfigError, DktError
from dkt_ray.features.dataset import Dataset
from dkt_ray.registry import bundle
from dkt_ray.registry.gate import GateConfig, judge
from dkt_ray.registry.store import AliasEntry
from dkt_ray.serving import rollout
from dkt_ray.serving.deployments import ServeArgs
from dkt_ray.serving.examination import examine
from dkt_ray.storage import open_store
from tests import bundles, datasets, runs

USERS, EACH = 200, 40


@pytest.fixture(scope="module")
def answers():
    """Students of different ability, and the probabilities of somebody who knows them."""
    random = np.random.default_rng(0)
    user, position = np.repeat(np.arange(USERS), EACH), np.tile(np.arange(EACH), USERS)
    truth = 1 / (1 + np.exp(-random.normal(0, 1, USERS)[user] - random.normal(0, 1, len(user))))
    y = (random.random(len(user)) < truth).astype(np.int8)
    return SimpleNamespace(y=y, user=user, position=position, truth=truth)


def judged(answers, challenger, champion=None, **config):
    old = answers.truth if champion is None else champion
    return judge(answers.y, answers.user, answers.position, old, challenger, GateConfig(samples=60, **config))


def blurred(p, width, rows=slice(None), seed=1):
    changed = p.copy()
    noise = np.random.default_rng(seed).normal(0, width, len(p))
    changed[rows] = np.clip(p + noise, 0.01, 0.99)[rows]
    return changed


def test_the_same_answers_pass_with_a_difference_of_exactly_nothing(answers):
    report = judged(answers, answers.truth)
    assert report.passed
    assert report.failures == ()
    assert report.auc.difference == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (report.rows, report.users) == (USERS * (EACH - 1), USERS)  # the headline leaves out cold starts


def test_a_worse_order_fails_by_the_auroc_and_a_better_one_passes(answers):
    worse = blurred(answers.truth, 0.3)
    report = judged(answers, worse, ece_margin=1)
    assert not report.passed
    assert report.failures[0].startswith("AUROC 0.")
    assert "lower bound below auc_margin -0.001" in report.failures[0]
    assert judged(answers, answers.truth, champion=worse).passed
    assert judged(answers, worse, auc_margin=1, ece_margin=1, slice_margin=1).passed


def test_what_may_be_worse_by_chance_fails_though_it_looks_no_worse(answers):
    one, other = (blurred(answers.truth, 0.2, seed=seed) for seed in (1, 2))
    report = judged(answers, other, champion=one, ece_margin=1)
    if report.auc.difference["value"] < 0:
        report = judged(answers, one, champion=other, ece_margin=1)
    assert report.auc.difference["value"] >= 0
    assert [failure.split(" 0.")[0] for failure in report.failures] == ["AUROC"]


def test_probabilities_that_are_off_fail_by_calibration_alone(answers):
    report = judged(answers, answers.truth**3)  # the same order
    assert [failure.split(" 0.")[0] for failure in report.failures] == ["calibration error"]
    assert report.auc.difference["low"] == 0.0


def test_a_slice_that_is_worse_fails_by_its_whole_interval_though_the_headline_may_pass(answers):
    early = answers.position <= 5
    report = judged(answers, blurred(answers.truth, 0.6, early), auc_margin=1, ece_margin=1)
    assert {failure.split(" 0.")[0] for failure in report.failures} == {
        "AUROC after 1-5 answers",
        "AUROC after 0 answers",
    }
    assert report.slices["21-100"].difference["value"] == 0.0
    assert report.slices["> 100"].difference["value"] is None  # nobody is there; it decides nothing


def test_answers_of_one_kind_decide_nothing_and_so_do_not_pass(answers):
    report = judge(
        np.ones(6, np.int8), np.arange(6) // 3, np.arange(6) % 3, np.full(6, 0.5), np.full(6, 0.5), GateConfig()
    )
    assert not report.passed
    assert "cannot be compared" in report.failures[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two bundles of dataset `tiny`, which has test users, and a dataset that neither was trained on."""
    folder = tmp_path_factory.mktemp("gate")
    store = open_store(folder / "store")
    for name, seed, test_fraction in (("tiny", 0, 0.4), ("newer", 1, 0.0)):
        log = runs.write_log(folder / f"{name}.csv", bundles.simulate(seed=seed))
        data = {"folds": 2, "buckets": 2, "test_fraction": test_fraction}
        datasets.run(log, store.url, data=data, encoder={"min_count": 2}, dataset=name)
    found = []
    for seed in (0, 1):
        digest = bundles.build(folder / f"bundle{seed}", bundles.save_members(folder / f"members{seed}", seed))
        found.append(bundle.load(folder / f"bundle{seed}", digest))
    return store, *found


def test_both_are_judged_by_test_users_and_the_ledger_says_so(store):
    files, champion, challenger = store
    report = examine(files, champion, challenger, GateConfig())
    entry = files.read_json(files.list("ledger")[-1])
    assert entry["why"] == f"gate: {challenger.digest[:12]} against {champion.digest[:12]}"
    vault = Dataset.open(files, "tiny").open_vault("the same answers, counted here")
    assert report["users"] == len(vault.users)
    assert report["rows"] == int(((vault.rows.position > 0) & (vault.rows.correct >= 0)).sum())
    again = examine(files, champion, challenger, GateConfig())
    assert again == report
    assert report["auc"]["difference"]["value"] != 0
    same = examine(files, champion, champion, GateConfig())
    assert same["fingerprint"] == report["fingerprint"]
    assert same["passed"]
    few = examine(files, champion, challenger, GateConfig(most_users=4))
    assert few["users"] == 4
    assert few["fingerprint"] != report["fingerprint"]


def trained(found, **provenance):
    """The bundle, as if it came from elsewhere."""
    changed = found.manifest.provenance.model_copy(update=provenance)
    return replace(found, manifest=found.manifest.model_copy(update={"provenance": changed}))


def test_answers_that_train_do_not_judge(store, tmp_path):
    """Users whose last answer is held out train with the others."""
    files = open_store(tmp_path / "store")
    log = runs.write_log(tmp_path / "log.csv", bundles.simulate())
    data = {"folds": 2, "buckets": 2, "split": "last_answer", "test_fraction": 0.5}
    datasets.run(log, files.url, data=data, encoder={"min_count": 2}, dataset="tiny")
    now = Dataset.open(files, "tiny").manifest
    both = [trained(each, dataset_fingerprint=now.fingerprint) for each in store[1:]]
    report = examine(files, *both, GateConfig())
    assert report["rows"] == report["users"] == now.held_out
    moved = trained(both[1], dataset_fingerprint="before more was added", split=now.split_settings)
    with pytest.raises(ConfigError, match=r"challenger .* has other data or settings now"):
        examine(files, both[0], moved, GateConfig())  # the last answer of then is another one


@pytest.mark.parametrize("split", [None, {"seed": 1}, {"test_fraction": 0.3}, {"split": "balanced"}])
def test_a_dataset_that_was_split_otherwise_meanwhile_does_not_judge(store, split):
    files, champion, challenger = store
    now = Dataset.open(files, "tiny").manifest
    assert champion.manifest.provenance.split == now.split_settings
    assert champion.manifest.provenance.dataset_fingerprint != now.fingerprint  # data were added, by the same split
    old = trained(champion, split=split and now.split_settings | split)
    with pytest.raises(ConfigError, match=r"champion .* has other data or settings now .* may have trained"):
        examine(files, old, challenger, GateConfig())
    same = trained(old, dataset_fingerprint=now.fingerprint)
    assert examine(files, same, challenger, GateConfig(most_users=4))["users"] == 4


def test_the_same_logs_under_another_name_do_not_judge(store, tmp_path):
    files, champion, challenger = store
    log = runs.write_log(tmp_path / "again.csv", bundles.simulate())
    datasets.run(log, files.url, data={"folds": 2, "test_fraction": 0.0}, encoder={"min_count": 2}, dataset="again")
    settings = GateConfig(dataset="again", users="all")
    with pytest.raises(ConfigError, match=r"champion .* 'tiny', which holds .*again\.csv, too"):
        examine(files, champion, challenger, settings)
    gone = {"dataset": "gone", "dataset_fingerprint": Dataset.open(files, "again").manifest.fingerprint}
    with pytest.raises(ConfigError, match=r"challenger .* trained on dataset 'again' itself"):
        examine(files, trained(champion, dataset="gone"), trained(challenger, **gone), settings)


def test_a_dataset_that_neither_was_trained_on_may_judge_with_everybody_in_it(store):
    files, champion, challenger = store
    opened = len(files.list("ledger"))
    report = examine(files, champion, challenger, GateConfig(dataset="newer", users="all"))
    assert report["dataset"] == "newer"
    assert len(files.list("ledger")) == opened  # nobody's vault


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"users": "all"}, "champion .* trained on dataset 'tiny' itself"),
        (
            {"dataset": "newer"},
            "champion .* trained on dataset 'tiny', whose training users may be test users of 'newer'",
        ),
        ({"dataset": "none"}, "no dataset 'none'"),
    ],
)
def test_judges_whom_a_bundle_may_have_seen_are_refused(store, settings, message):
    files, champion, challenger = store
    opened = len(files.list("ledger"))
    with pytest.raises(DktError, match=message):
        examine(files, champion, challenger, GateConfig(**settings))
    assert len(files.list("ledger")) == opened


def test_a_challenger_of_another_dataset_is_refused(store):
    files, champion, challenger = store
    with pytest.raises(ConfigError, match=r"challenger .* trained on dataset 'elsewhere'"):
        examine(files, champion, trained(challenger, dataset="elsewhere"), GateConfig(dataset="tiny"))


@pytest.mark.parametrize(
    ("alias", "running", "champion"),
    [
        (None, None, None),
        (None, "new", None),
        (None, "old", "old"),
        ("old", None, "old"),
        ("old", "new", "old"),  # deployed past the gate
        ("old", "other", "old"),
        ("new", "other", "other"),
        ("new", "new", "new"),
        ("new", None, "new"),
    ],
)
def test_whoever_runs_already_is_judged_against_the_alias_all_the_same(alias, running, champion):
    entry = alias and AliasEntry(alias, None, 1, "", "")
    before = running and ServeArgs(store="s", bundle=running)
    assert rollout._champion(entry, before, "new") == champion
