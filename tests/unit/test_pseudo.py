"""Pseudo-labels: which answers are guessed, that no validation answer is read, and what a run keeps of its rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from dkt_ray.config import build
from dkt_ray.data.history import Histories, graded
from dkt_ray.errors import ConfigError
from dkt_ray.features.dataset import Dataset
from dkt_ray.models.base import Model
from dkt_ray.pipelines import pseudo, train
from dkt_ray.storage import Store, open_store
from dkt_ray.training.protocol import Scored
from dkt_ray.training.pseudo import Pool, guess
from tests import bundles, datasets
from tests.runs import write_log

ONE_EPOCH = {"width": 8, "context": 10, "epochs": 1, "batch_rows": 512}


def some_hidden() -> Histories:
    """Every fifth student's last answer is hidden."""
    histories = bundles.simulate()
    correct = histories.correct.copy()
    correct[histories.offsets[1::5] - 1] = -1
    return replace(histories, correct=correct)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a small dataset: three folds and a test vault."""
    folder = tmp_path_factory.mktemp("pseudo")
    datasets.run(write_log(folder / "log.csv", some_hidden()), folder / "store")
    return str(folder / "store")


def run(url: str, name: str, **values: Any) -> dict[str, Any]:
    settings = {"store": url, "run": name, "family": "lstm_attention", "settings": ONE_EPOCH, "samples": 10} | values
    return train.run(build(train.TrainConfig, settings))


def folder(url: str, name: str) -> Store:
    return open_store(url).child(f"runs/{name}/trained/lstm_attention")


class Says(Model):
    """Gives each target row the next of the probabilities, and notes what it was shown."""

    def __init__(self, probability: list[float]) -> None:
        self.probability, self.shown = np.array(probability), []

    def score(self, past, targets):
        self.shown.append(targets.correct.copy())
        return self.probability[: targets.rows]

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> Says:
        raise NotImplementedError


def test_confident_guesses_take_the_place_of_hidden_answers_only():
    world = bundles.world()
    histories = some_hidden()
    pool = Pool.of(histories, np.zeros(len(histories.users), np.int8))
    rows = replace(pool, fold=np.full(len(histories.users), -1, np.int8)).encoded(world.state)
    hidden = np.flatnonzero(~graded(histories.correct))
    assert len(hidden) == 8
    model = Says([0.9, 0.8, 0.79, 0.5, 0.21, 0.2, 0.1, 0.0])
    found = guess(model, rows, 0.8)
    np.testing.assert_array_equal(found.correct[hidden], [1, 1, -1, -1, -1, 0, 0, 0])
    kept = np.setdiff1d(np.arange(rows.rows), hidden)
    np.testing.assert_array_equal(found.correct[kept], histories.correct[kept])
    assert (found.unknown, found.taken, found.right) == (8, 5, 2)
    assert (model.shown[0] == -1).all()
    np.testing.assert_array_equal(guess(model, rows, 0.5).correct[hidden], [1, 1, 1, 1, 0, 0, 0, 0])
    assert (rows.correct[hidden] == -1).all(), "the rows themselves stay as they are"


def test_test_users_join_with_every_answer_hidden(url):
    dataset = datasets.opened(url)
    training, fold = dataset.load_histories({1, 2})
    pool = Pool.of(training, fold, dataset.test_inputs())
    asked = len(pool.histories.users) - len(training.users)
    assert asked == dataset.manifest.test_users > 0
    assert not graded(pool.histories.correct[training.rows :]).any()
    np.testing.assert_array_equal(pool.histories.correct[: training.rows], training.correct)
    assert not set(pool.histories.users) & set(dataset.training_users({0}))
    with pytest.raises(AssertionError, match="an answer of a test user is known"):
        Pool.of(training, fold, training)


def test_without_rounds_nothing_changes(url):
    plain, off = run(url, "plain"), run(url, "off", pseudo={"rounds": 0, "of": "test", "confidence": 0.6})
    assert "pseudo" not in off
    assert plain["auc"] == off["auc"]
    assert folder(url, "off").read_json("config.json") == folder(url, "plain").read_json("config.json")
    files = [[key for key in folder(url, name).list() if "tensorboard" not in key] for name in ("plain", "off")]
    assert files[0] == files[1]
    assert "pseudo.json" not in files[0]


@pytest.mark.parametrize("of", ["hidden", "test"])
def test_every_round_is_kept_and_the_model_says_that_it_was_taught_so(of, url, caplog):
    caplog.set_level("INFO")
    settings = {"rounds": 2, "of": of, "confidence": 0.5}
    result = run(url, of, pseudo=settings, refit=True)
    kept = folder(url, of)
    facts = kept.read_json("pseudo.json")
    assert [line["round"] for line in facts["rounds"]] == [0, 1, 2]
    assert all(line["labels"] == line["unknown"] > 0 for line in facts["rounds"][1:])
    assert facts["verdict"] in ("better", "worse", "no difference shown")
    assert result["pseudo"] == facts == kept.read_json("report.json")["pseudo"]
    assert result["auc"]["lstm_attention"] == facts["rounds"][2]["auc"] == kept.read_json("train.json")["auc"]
    assert result["auc"][pseudo.BEFORE] == facts["rounds"][0]["auc"]
    compared = kept.read_json("report.json")["differences"][pseudo.BEFORE]["models"]["lstm_attention"]
    assert compared["value"] == pytest.approx(facts["difference"]["value"], abs=1e-12)
    assert kept.read_json("train.json")["pseudo"] == settings
    assert sum("AUROC" in line and "round" in line for line in caplog.messages) >= 3
    assert len(ElementTree.fromstring(kept.read("pseudo.svg").decode()).findall(".//{*}circle")) == 3
    assert kept.exists("pseudo/1/epochs.jsonl")
    assert not [key for key in kept.list("pseudo") if "model/" in key or "checkpoint" in key]
    assert kept.exists("refit/model/weights.safetensors")
    both = (place.read_table("scores.parquet") for place in (kept.child("pseudo/0"), kept))
    first, last = (Scored.from_table(table, "scores") for table in both)
    assert (first.probability != last.probability).mean() > 0.9, "the guesses taught nothing"


def test_no_answer_of_a_user_who_validates_is_read(url, monkeypatch):
    settings = {"rounds": 1, "of": "hidden", "confidence": 0.5}
    run(url, "as_it_is", pseudo=settings)
    load = Dataset.load

    def flipped(self: Dataset, folds: Any = None) -> Any:
        split = load(self, folds)
        if set(folds) != {0}:
            return split
        correct = np.where(graded(split.rows.correct), 1 - split.rows.correct, -1).astype(np.int8)
        return split._replace(rows=replace(split.rows, correct=correct))

    monkeypatch.setattr(Dataset, "load", flipped)
    run(url, "flipped", pseudo=settings)
    weights = [folder(url, name).read("model/weights.safetensors") for name in ("as_it_is", "flipped")]
    assert weights[0] == weights[1]
    judged = [folder(url, name).read_json("pseudo.json")["rounds"][1]["auc"] for name in ("as_it_is", "flipped")]
    assert judged[0] != judged[1]


def test_an_interrupted_round_goes_on_to_the_same_bits(url, monkeypatch):
    settings = {"rounds": 2, "of": "hidden", "confidence": 0.5}
    run(url, "whole", pseudo=settings)

    def interrupted(*arguments: Any) -> Any:
        rounds.append(1)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return guess(*arguments)

    rounds: list[int] = []
    monkeypatch.setattr(train, "guess", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(url, "halves", pseudo=settings)
    monkeypatch.undo()
    run(url, "halves", pseudo=settings)
    whole, halves = folder(url, "whole"), folder(url, "halves")
    assert halves.read("model/weights.safetensors") == whole.read("model/weights.safetensors")
    assert halves.read_json("pseudo.json") == whole.read_json("pseudo.json")
    with pytest.raises(ConfigError, match=r"trained with other settings \(pseudo"):
        run(url, "whole", pseudo=settings | {"rounds": 1})


def test_what_cannot_be_guessed_is_said(url, tmp_path):
    with pytest.raises(ConfigError, match="workers is 2, and pseudo-labels are for one process; set workers to 1"):
        run(url, "shared", workers=2, pseudo={"rounds": 1})
    datasets.run(write_log(tmp_path / "log.csv", bundles.simulate()), tmp_path / "store")
    with pytest.raises(ConfigError, match="no such answer for the users who train; set pseudo"):
        run(str(tmp_path / "store"), "known", pseudo={"rounds": 1})


def test_only_users_who_are_test_users_from_their_first_answer_are_guessed() -> None:
    """Of a temporal split, test users also train or validate: their own rows are not to be guessed."""
    everyone = bundles.world().histories
    training = everyone.select(np.arange(2, len(everyone.users)))
    asked = everyone.select(np.arange(5))
    split = SimpleNamespace(test_inputs=lambda: asked, load_histories=lambda: (training, None))
    assert pseudo._strangers(split).users.tolist() == everyone.users[:2].tolist()
