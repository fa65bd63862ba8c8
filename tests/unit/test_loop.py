"""The training loop: schedule, unknown ids, early stopping, exact resume, a clear end when the loss diverges."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from dkt_ray.data.windows import STRATEGIES
from dkt_ray.errors import ConfigError, TrainingError
from dkt_ray.features.batch import UNKNOWN_ID, SequenceBatch
from dkt_ray.models.lstm_attention import LstmAttention, LstmAttentionConfig
from dkt_ray.training import loop
from dkt_ray.training.objectives import chosen, log_loss
from dkt_ray.training.progress import FitResult, Progress, TrainingData, improves
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


def test_the_rate_rises_to_its_peak_and_falls_to_a_hundredth():
    settings = config(learning_rate=0.5, warmup=0.2)
    rates = [loop.learning_rate(settings, progress) for progress in np.linspace(0, 1, 101)]
    assert rates[0] == pytest.approx(0.005)
    assert max(rates) == rates[20] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.005)
    assert (np.diff(rates[:21]) > 0).all()
    assert (np.diff(rates[20:]) < 0).all()
    assert loop.learning_rate(settings, 1.5) == rates[-1]  # a refit may go on longer than the schedule


def test_only_weight_matrices_decay_and_embeddings_go_slower(data):
    network = LstmAttention(config(), loop.Inputs.of(data.state))
    matrices, vectors, tables = loop.parameter_groups(network, config(weight_decay=0.3, embedding_rate=0.2))
    assert (matrices["weight_decay"], vectors["weight_decay"], tables["weight_decay"]) == (0.3, 0.0, 0.0)
    assert (matrices["share"], vectors["share"], tables["share"]) == (1.0, 1.0, 0.2)
    everything = [id(p) for group in (matrices, vectors, tables) for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in network.parameters())
    assert any(p is network.lstm.weight_hh_l0 for p in matrices["params"])
    assert any(p is network.inputs.answer.weight for p in tables["params"])


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


def test_objectives_choose_known_answers():
    correct = torch.tensor([[1.0, 0.0, -1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]])
    assert chosen(correct, None).tolist() == [[True, True, False, True], [False] * 4]
    assert chosen(correct, 2).tolist() == [[False, True, False, True], [False] * 4]
    logits = torch.tensor([[0.3, -2.0, 50.0, 1.5], [50.0] * 4], requires_grad=True)
    surprise = [math.log1p(math.exp(-0.3)), math.log1p(math.exp(-2.0)), math.log1p(math.exp(-1.5))]
    assert log_loss(logits, correct).item() == pytest.approx(sum(surprise) / 3, rel=1e-6)
    assert log_loss(logits, correct, last=1).item() == pytest.approx(surprise[2], rel=1e-6)
    nothing = log_loss(logits[1:], correct[1:])
    nothing.backward()
    assert nothing.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


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
    assert [path.name for path in (tmp_path / "run").iterdir()] == [loop.CHECKPOINT]


def test_a_killed_run_of_random_windows_resumes_to_the_same_bits(data, tmp_path):
    settings = config(epochs=3, patience=3, windows={"strategy": "random", "length": 8, "balanced": True})

    def die(progress: Progress) -> None:
        raise ProcessDiedError

    with pytest.raises(ProcessDiedError):
        train(data, settings, checkpoint=tmp_path, report=die)
    again, straight = train(data, settings, checkpoint=tmp_path), train(data, settings)
    assert timeless(again.curve) == timeless(straight.curve)
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(straight).items())


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
    first = loop.Part.training(data.train, network, torch.device("cpu"), 0)
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


def test_a_checkpoint_of_other_settings_is_refused(data, tmp_path):
    train(data, config(epochs=1), checkpoint=tmp_path)
    with pytest.raises(ConfigError, match=r"learning_rate 0\.003 there, 0\.1 here"):
        train(data, config(epochs=1, learning_rate=0.1), checkpoint=tmp_path)


@pytest.mark.parametrize("name", ["school", "previous_correct"])
def test_a_column_that_cannot_be_embedded_is_named(data, name):
    with pytest.raises(ConfigError, match=f"embeddings names '{name}'; a network may embed head, hour, lag"):
        train(data, config(embeddings={name: 4}))


def test_a_diverging_loss_ends_with_step_and_remedy(data):
    broken = dataclasses.replace(data.train, numbers=np.full_like(data.train.numbers, np.nan))
    with pytest.raises(TrainingError, match=r"loss is nan at step 1 of epoch 1 .*lower learning_rate \(now 0.003\)"):
        train(TrainingData(broken, None, data.state), config(epochs=1))


def test_training_leaves_the_callers_generator_alone(data):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(data, config(epochs=1))
    assert torch.equal(torch.rand(3), expected)
