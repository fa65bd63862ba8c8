"""What a network does with bad input: it trains and scores, or it says what is wrong and what helps."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dkt_ray.data.history import Coded, Histories
from dkt_ray.errors import ConfigError, TrainingError
from dkt_ray.features.batch import Rows
from dkt_ray.models.catalog import CATALOG
from dkt_ray.models.lstm import Lstm, LstmConfig
from dkt_ray.training import loop
from dkt_ray.training.fit import fit
from dkt_ray.training.progress import FitResult, TrainingData
from tests.contract import world as w

TINY = {"context": 8, "width": 4, "epochs": 1, "embeddings": {"question": 4, "test": 2}, "concept_embedding": 2}
CORE = w.EncoderConfig(features=("core",))


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return w.World.of(w.students(12, seed=1, longest=24), CORE).data


def train(data: TrainingData, **changes: object) -> FitResult:
    return loop.train(Lstm, LstmConfig.model_validate(TINY | changes), data)


def with_column(rows: Rows, column: int, value: float) -> Rows:
    numbers = rows.numbers.copy()
    numbers[:, column] = value
    return replace(rows, numbers=numbers)


def scored(result: FitResult, rows: Rows) -> np.ndarray:
    scores = result.model.score(rows, rows)
    assert scores.shape == (rows.rows,)
    assert ((scores > 0) & (scores < 1)).all()
    return scores


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["train", "valid"])
def test_a_number_that_is_not_finite_is_named_with_its_rows_and_the_remedy(data, part, value):
    rows = getattr(data, part)
    numbers = rows.numbers.copy()
    numbers[[0, 3], 1] = value
    broken = replace(data, **{part: replace(rows, numbers=numbers)})
    name = data.state.number_names[1]
    message = rf"NaN or infinity: {name} in 2 of {rows.rows} {part}\w* rows; leave their groups out .*numbers: false"
    with pytest.raises(TrainingError, match=message):
        train(broken)
    scored(train(broken, numbers=False), data.valid)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e4])
def test_a_column_of_one_value_changes_nothing(data, value):
    rows = with_column(data.train, 0, value)
    state = data.state.with_scaler(w.moments(rows))
    assert state.std[0] > 0
    result = train(TrainingData(rows, with_column(data.valid, 0, value), state))
    assert np.isfinite(result.curve[-1].loss)
    scored(result, with_column(data.valid, 0, value))
    scored(result, data.valid)  # the column moves again


def one_of_everything(users: int, rows: int) -> Histories:
    """One question, one test, one concept, answered again and again."""
    one = np.zeros(users * rows, np.int32)
    return Histories(
        users=np.array([f"s{index}" for index in range(users)], object),
        offsets=np.arange(users + 1, dtype=np.int64) * rows,
        question=Coded(one, np.array(["q"], object)),
        test=Coded(one, np.array(["t"], object)),
        concepts=Coded(one, np.array(["c"], object)),
        correct=(np.arange(users * rows) % 3 > 0).astype(np.int8),
        timestamp=1_600_000_000_000 + 1000 * np.arange(users * rows),
    )


def test_a_vocabulary_of_one_is_trained_and_scored():
    world = w.World.of(one_of_everything(12, 7), CORE)
    assert world.state.sizes["question"] == world.state.sizes["concepts"] == 3  # padding, unknown, the one
    scored(train(world.data), world.data.valid)


def test_histories_of_one_answer_are_trained_and_scored():
    data = w.World.of(one_of_everything(30, 1), CORE).data
    result = train(data)
    assert result.auc is None  # a first answer is not counted
    scored(result, data.valid)


@pytest.fixture(scope="module")
def long() -> TrainingData:
    return w.World.of(one_of_everything(3, 25_576), CORE).data


@pytest.mark.parametrize("family", [name for name, spec in CATALOG.items() if spec.view == "sequence"])
def test_a_history_of_25576_answers_is_trained_and_scored(long, family):
    tiny = {"context": 64, "width": 8, "heads": 1, "inner": 8, "epochs": 1, "batch_rows": 16_384}
    scores = scored(fit(family, w.tiny(CATALOG[family], **tiny), long), long.valid)
    assert len(scores) == 25_576


def test_a_batch_larger_than_the_data_is_one_step(data, monkeypatch):
    steps: list[float] = []
    real = loop.set_rate
    monkeypatch.setattr(loop, "set_rate", lambda optimizer, rate: (steps.append(rate), real(optimizer, rate)))
    scored(train(data, batch_rows=10**9, epochs=2), data.valid)
    assert len(steps) == 2


def test_a_rate_that_diverges_ends_with_the_step_the_loss_and_the_remedy(data):
    message = r"loss is \S+ and .* norm \S+ at step \d+ of epoch \d+ .*lower learning_rate \(now 100000000\.0\)"
    with pytest.raises(TrainingError, match=message):
        train(data, learning_rate=1e8, embedding_rate=1.0, epochs=30, batch_rows=64, warmup=0.0, clip_norm=1e9)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        MemoryError("Unable to allocate 9.00 GiB for an array"),
    ],
)
def test_short_memory_ends_with_the_settings_that_help(data, monkeypatch, error):
    def forward(self, batch):
        raise error

    monkeypatch.setattr(Lstm, "forward", forward)
    with pytest.raises(TrainingError, match=r"memory is short with batch_rows 77, .*lower batch_rows first") as short:
        train(data, batch_rows=77)
    assert str(error) in str(short.value)


def test_another_error_of_torch_is_passed_on_as_it_is(data, monkeypatch):
    def forward(self, batch):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Lstm, "forward", forward)
    with pytest.raises(RuntimeError, match=r"^shapes cannot be multiplied$"):
        train(data)


def test_a_checkpoint_of_other_settings_is_refused_with_every_field_that_differs(data, tmp_path):
    loop.train(Lstm, LstmConfig.model_validate(TINY), data, checkpoint=tmp_path)
    other = LstmConfig.model_validate(TINY | {"width": 8, "dropout": 0.0, "checkpoint_s": 1.0})
    with pytest.raises(ConfigError, match=r"\(dropout 0\.2 there, 0\.0 here; width 4 there, 8 here\)"):
        loop.train(Lstm, other, data, checkpoint=tmp_path)


def test_features_that_a_saved_model_does_not_know_are_refused_with_both_lists(data, tmp_path):
    names = data.state.number_names
    train(data).model.save(tmp_path)
    again = Lstm.load(tmp_path)
    again.check(names)
    for others in (names[:-1], (*names, "new"), names[::-1]):
        with pytest.raises(ConfigError) as refused:
            again.check(others)
        assert ", ".join(names) in str(refused.value)
        assert ", ".join(others) in str(refused.value)


def test_a_network_of_a_version_that_kept_no_feature_names_is_refused_with_the_remedy(data, tmp_path):
    train(data).model.save(tmp_path)
    facts = json.loads((tmp_path / "network.json").read_text())
    del facts["names"]
    (tmp_path / "network.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"the saved Lstm has no `names`: an earlier version .*train the model again"):
        Lstm.load(tmp_path)


def test_a_model_without_numbers_takes_any_numeric_features(data, tmp_path):
    train(data, numbers=False).model.save(tmp_path)
    Lstm.load(tmp_path).check(("anything",))
