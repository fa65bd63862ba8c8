"""The training loop: schedule, unknown ids, early stopping, exact resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dkt_ray.data.windows import STRATEGIES
from dkt_ray.errors import ConfigError, TrainingError
from dkt_ray.features.batch import UNKNOWN_ID, SequenceBatch
from dkt_ray.features.collate import collate
from dkt_ray.models.lstm_attention import LstmAttention, LstmAttentionConfig
from dkt_ray.training import loop
from dkt_ray.training.checkpoint import CHECKPOINT, Run, follow, restore
from dkt_ray.training.feed import Part
from dkt_ray.training.objectives import OBJECTIVES
from dkt_ray.training.optimizers import OPTIMIZERS
from dkt_ray.training.progress import FitResult, Progress, TrainingData, improves
from dkt_ray.training.schedules import plateaus
from tests.contract import world as w

SMALL = {"context": 8, "width": 8, "heads": 2, "batch_rows": 512}


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return w.World.of(w.students(30, seed=1, longest=24)).data


def config(**changes: object) -> LstmAttentionConfig:
    return LstmAttentionConfig.model_validate(SMALL | changes)


def train(data: TrainingData, settings: LstmAttentionConfig, **options: object) -> FitResult:
    return loop.train(LstmAttention, settings, data, **options)


def timeless(curve: list[Progress]) -> list[Progress]:
    return [progress._replace(rows_per_s=0.0) for progress in curve]


def weights(result: FitResult) -> dict[str, torch.Tensor]:
    return result.model.state_dict()


def batch_of(ids: torch.Tensor) -> SequenceBatch:
    numbers, flat = torch.zeros(*ids.shape[:2], 1), torch.zeros(ids.shape[:2], dtype=torch.int64)
    return SequenceBatch(ids, ids, numbers, flat, ids, ids, numbers, flat, flat.float(), flat)


def test_a_share_of_the_ids_becomes_unknown_and_padding_stays():
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (40, 50, 4))
    hidden = loop.hide_ids(batch_of(ids), 0.25)
    for name in ("past_ids", "past_concepts", "target_ids", "target_concepts"):
        changed = getattr(hidden, name) != ids
        assert (getattr(hidden, name)[changed] == UNKNOWN_ID).all()
        assert (ids[changed] > UNKNOWN_ID).all()
        assert changed.float().mean().item() == pytest.approx(0.25 * 0.96, abs=0.02)
    whole = loop.hide_ids(batch_of(ids), 0.0)
    assert torch.equal(whole.past_ids, ids)


def test_a_better_auc_improves_and_without_one_later_is_better():
    best = Progress(1, 0.7, 0.6, 1.0)
    assert improves(best, None)
    assert improves(best._replace(auc=0.71), best)
    assert not improves(best._replace(auc=0.7), best)
    assert improves(best._replace(auc=None), best)


def test_training_stops_early_and_keeps_the_best_weights(data):
    reports: list[Progress] = []
    result = train(data, config(epochs=40, patience=2, learning_rate=0.1, embedding_rate=1.0), report=reports.append)
    aucs = [progress.auc for progress in result.curve]
    assert result.curve == reports
    assert [progress.iteration for progress in reports] == list(range(1, len(reports) + 1))
    assert len(reports) < 40, "this run never stopped: the test shows nothing"
    assert result.best_iteration == aucs.index(max(aucs)) + 1 == len(aucs) - 2
    assert result.auc == max(aucs)
    counted = loop.scored(data.valid)
    scores = result.model.score(data.valid, data.valid)
    assert loop.auc(data.valid.correct[counted], scores[counted]) == pytest.approx(result.auc, abs=1e-9)


def test_a_fixed_number_of_epochs_keeps_the_last_weights(data):
    result = train(data, config(epochs=2, patience=1, learning_rate=0.05), iterations=4)
    assert len(result.curve) == result.best_iteration == 4
    assert result.auc == result.curve[-1].auc
    alone = train(TrainingData(data.train, None, data.state), config(epochs=2))
    assert alone.best_iteration == 2
    assert alone.auc is None


class ProcessDiedError(Exception):
    """Stands for the death of the process."""


@pytest.mark.parametrize("last_epoch", [1, 2])
def test_a_killed_run_resumes_to_the_same_bits(data, tmp_path, last_epoch):
    settings = config(epochs=4, patience=4, layers=2, dropout=0.2)

    def die(progress: Progress) -> None:
        if progress.iteration == last_epoch:
            raise ProcessDiedError

    with pytest.raises(ProcessDiedError):
        train(data, settings, checkpoint=tmp_path / "run", report=die)
    torch.manual_seed(77)  # whatever the new process did before
    resumed: list[Progress] = []
    again = train(data, settings, checkpoint=tmp_path / "run", report=resumed.append)
    assert [progress.iteration for progress in resumed] == list(range(last_epoch + 1, 5))
    straight = train(data, settings)
    assert timeless(again.curve) == timeless(straight.curve)
    assert again.best_iteration == straight.best_iteration
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(again)[name], tensor), name
    assert [path.name for path in (tmp_path / "run").iterdir()] == [CHECKPOINT]


def test_a_killed_run_of_random_windows_resumes_to_the_same_bits(data, tmp_path):
    settings = config(epochs=3, patience=3, windows={"strategy": "random", "length": 8, "balanced": True})

    def die(progress: Progress) -> None:
        raise ProcessDiedError

    with pytest.raises(ProcessDiedError):
        train(data, settings, checkpoint=tmp_path, report=die)
    again, straight = train(data, settings, checkpoint=tmp_path), train(data, settings)
    assert timeless(again.curve) == timeless(straight.curve)
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(straight).items())


def die_at_checkpoint(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The process dies right after its n-th checkpoint is written."""
    real, written = loop.store, []

    def store(run: Run, folder: Path) -> None:
        real(run, folder)
        written.append(run.tally.steps)
        if len(written) == number:
            raise ProcessDiedError

    monkeypatch.setattr(loop, "store", store)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_that_was_killed_within_an_epoch_resumes_to_the_same_bits(data, tmp_path, monkeypatch, optimizer):
    settings = config(
        epochs=3,
        optimizer=optimizer,
        schedule="plateau",
        averaging=0.9,
        batch_norm=True,
        batch_rows=128,
        checkpoint_s=0,
    )
    straight = train(data, settings)
    with monkeypatch.context() as patch:
        die_at_checkpoint(patch, 25)
        with pytest.raises(ProcessDiedError):
            train(data, settings, checkpoint=tmp_path)
    run = Run.of(LstmAttention(settings, loop.Inputs.of(data.state)))
    restore(run, tmp_path)
    assert run.tally.steps > 0, "it died between two epochs: this test shows nothing"
    assert len(run.curve) > 0
    torch.manual_seed(77)
    again = train(data, settings.model_copy(update={"checkpoint_s": 300.0}), checkpoint=tmp_path)
    assert timeless(again.curve) == timeless(straight.curve)
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(again)[name], tensor), name


def test_three_runs_of_one_seed_are_equal_and_another_seed_is_not(data):
    settings = config(epochs=2, layers=2, windows={"strategy": "random", "length": 8})
    first, *others = (train(data, settings) for _ in range(3))
    for other in others:
        assert timeless(other.curve) == timeless(first.curve)
        assert all(torch.equal(weights(other)[name], tensor) for name, tensor in weights(first).items())
    assert timeless(train(data, settings.model_copy(update={"seed": 1})).curve) != timeless(first.curve)


def test_the_averaged_weights_are_validated_and_kept(data):
    plain, averaged = (train(data, config(epochs=2, patience=2, averaging=decay)) for decay in (0.0, 0.99))
    assert [each.loss for each in plain.curve] == [each.loss for each in averaged.curve]  # the steps are the same
    assert [each.auc for each in plain.curve] != [each.auc for each in averaged.curve]
    counted = loop.scored(data.valid)
    scores = averaged.model.score(data.valid, data.valid)
    assert loop.auc(data.valid.correct[counted], scores[counted]) == pytest.approx(averaged.auc, abs=1e-9)


@pytest.mark.parametrize("schedule", ["one_cycle", "plateau"])
def test_the_rate_is_set_before_every_step(data, monkeypatch, schedule):
    rates: list[float] = []
    real = loop.set_rate
    monkeypatch.setattr(loop, "set_rate", lambda optimizer, rate: (rates.append(rate), real(optimizer, rate)))
    settings = config(epochs=5, patience=5, schedule=schedule, learning_rate=0.1, embedding_rate=1.0)
    curve = train(data, settings).curve
    steps = len(rates) // 5
    assert steps > 1
    for epoch in range(5):
        falls = plateaus([each.auc for each in curve[:epoch]], settings.plateau_epochs)
        expected = [loop.learning_rate(settings, epoch + step / steps, falls) for step in range(steps)]
        assert rates[epoch * steps : (epoch + 1) * steps] == expected
    assert len(set(rates)) > 1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns(data, objective):
    result = train(data, config(epochs=6, patience=6, objective=objective, last=4, learning_rate=0.02))
    assert result.curve[-1].loss < result.curve[0].loss
    assert result.auc > 0.6


def test_mixed_precision_learns_and_scores_in_float32(data):
    result = train(data, config(epochs=3, precision="bfloat16", learning_rate=0.02))
    plain = train(data, config(epochs=3, learning_rate=0.02))
    assert result.curve[-1].loss == pytest.approx(plain.curve[-1].loss, abs=0.02)
    assert [each.loss for each in result.curve] != [each.loss for each in plain.curve]
    assert {tensor.dtype for tensor in weights(result).values()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own look at what a graph break left
def test_a_compiled_forward_pass_changes_no_name(data, tmp_path, monkeypatch):
    calls: list[object] = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: calls.append(how) or real(model, backend="eager", **how))
    result = train(data, config(epochs=2, dropout=0.0, compiled=True), checkpoint=tmp_path / "run")
    assert calls == [{"dynamic": True}]
    plain = train(data, config(epochs=2, dropout=0.0))  # compiled dropout draws other numbers
    assert list(weights(result)) == list(weights(plain))
    assert result.curve[-1].loss == pytest.approx(plain.curve[-1].loss, abs=1e-4)
    (tmp_path / "model").mkdir()
    result.model.save(tmp_path / "model")
    again = LstmAttention.load(tmp_path / "model")
    assert np.array_equal(again.score(data.valid, data.valid), result.model.score(data.valid, data.valid))


class WaitsForTheDevice(TorchDispatchMode):
    """Counts operations that make the host wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket._qualified_op_name in {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(data):
    settings = config(averaging=0.9)
    run = Run.of(LstmAttention(settings, loop.Inputs.of(data.state)))
    part = Part.training(data.train, run.network, torch.device("cpu"), 0)
    with WaitsForTheDevice() as mode:
        for parts in loop.batches(part.segments, 512):
            batch = collate(part.flat, part.flat, parts, part.order)  # in this thread: the mode sees no other
            loop._step(run, run.network, loop.hide_ids(batch, 0.1), 0.01, loop.ALONE)
            run.average.update(run.network, 1)
        assert mode.found == []
        torch.ones(1).item()
    assert mode.found, "this test would see nothing"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_and_is_validated_under_the_context_rule(data, strategy):
    settings = config(epochs=1, windows={"strategy": strategy, "tests": 2})
    result = train(data, settings)
    counted = loop.scored(data.valid)
    scores = result.model.score(data.valid, data.valid)
    assert loop.auc(data.valid.correct[counted], scores[counted]) == pytest.approx(result.auc, abs=1e-9)
    default = train(data, config(epochs=1))
    same = all(torch.equal(weights(default)[name], tensor) for name, tensor in weights(result).items())
    assert same == (strategy == "context")


def test_each_epoch_has_random_windows_of_its_own(data):
    network = LstmAttention(config(windows={"strategy": "random"}), loop.Inputs.of(data.state))
    first = Part.training(data.train, network, torch.device("cpu"), 0)
    again, second = (first.redrawn(network.config, epoch) for epoch in (0, 1))
    assert np.array_equal(first.segments, again.segments)
    assert not np.array_equal(first.segments, second.segments)
    assert second.flat is first.flat  # nothing is copied


def test_rows_without_any_window_are_an_error(data):
    hidden = dataclasses.replace(data.train, correct=np.full_like(data.train.correct, -1))
    with pytest.raises(TrainingError, match=r"strategy last finds no window with a known answer in \d+ training rows"):
        train(TrainingData(hidden, None, data.state), config(epochs=1, windows={"strategy": "last"}))


def test_windows_longer_than_what_scoring_reads_are_refused():
    with pytest.raises(ValueError, match=r"windows\.length 17 is more than the 16 rows that scoring reads"):
        config(windows={"length": 17})


def test_a_finished_run_is_not_trained_again(data, tmp_path):
    settings = config(epochs=2)
    first = train(data, settings, checkpoint=tmp_path)
    reports: list[Progress] = []
    second = train(data, settings, checkpoint=tmp_path, report=reports.append)
    assert reports == []
    assert second.curve == first.curve
    assert all(torch.equal(weights(second)[name], tensor) for name, tensor in weights(first).items())


@pytest.mark.parametrize("name", ["school", "previous_correct"])
def test_a_column_that_cannot_be_embedded_is_named(data, name):
    with pytest.raises(ConfigError, match=f"embeddings names '{name}'; a network may embed head, hour, lag"):
        train(data, config(embeddings={name: 4}))


def test_training_leaves_the_callers_generator_alone(data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(data, config(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_follows_settings_that_change_on_the_way_and_the_new_ones_are_in_force(data, tmp_path):
    """Population based training: weights and moments of one trial go on with the settings of another."""
    before = config(epochs=1, weight_decay=0.1, embedding_rate=0.1, learning_rate=1e-3)
    train(data, before, checkpoint=tmp_path)
    now = config(epochs=3, patience=3, weight_decay=0.2, embedding_rate=0.5, learning_rate=0.0123, dropout=0.4)
    with pytest.raises(ConfigError, match="has other settings"):
        train(data, now, checkpoint=tmp_path)
    follow(tmp_path, now, ("weight_decay", "embedding_rate", "learning_rate", "dropout", "epochs", "patience"))
    run = Run.of(LstmAttention(now, loop.Inputs.of(data.state)))
    restore(run, tmp_path)
    assert len(run.curve) == 1
    assert run.optimizer.state_dict()["state"]
    groups = run.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0, 0.0]
    assert [group["share"] for group in groups] == [1.0, 1.0, 0.5]
    assert [progress.iteration for progress in train(data, now, checkpoint=tmp_path).curve] == [1, 2, 3]
