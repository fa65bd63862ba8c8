"""The training loop of the sequence families: plain torch, resumable, and the same curve from the same seed.

An epoch draws its windows and batches from (seed, epoch), a step its dropout from (seed, epoch, step), so a resumed run
needs no generator state and continues exactly where the checkpoint stands. The host never waits for an accelerator
within a step: what must be looked at is looked at every few steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dkt_ray.errors import ConfigError, TrainingError
from dkt_ray.features.batch import PADDING, UNKNOWN_ID, SequenceBatch
from dkt_ray.features.collate import batches
from dkt_ray.metrics import auc
from dkt_ray.models.base import ModelConfig
from dkt_ray.models.dropout import chance
from dkt_ray.models.network import Inputs, Network, SequenceConfig
from dkt_ray.training.checkpoint import Run, Tally, restore, store
from dkt_ray.training.feed import Part
from dkt_ray.training.objectives import chosen, objective
from dkt_ray.training.optimizers import set_rate
from dkt_ray.training.progress import FitResult, Progress, Report, TrainingData, improves, scored
from dkt_ray.training.resources import short_of_memory
from dkt_ray.training.schedules import learning_rate, plateaus
from dkt_ray.training.team import ALONE, Team

LOOK: Final = 16  # steps between two looks at losses and gradients
DIVERGED: Final = 100.0  # loss per answer that only runaway weights reach: a certain miss of e ** -100

Forward = Callable[[SequenceBatch], Tensor]


class Seen(NamedTuple):
    """A step that was done, and what is still to be looked at."""

    rate: float
    measured: Tensor  # [3], where the network is: loss, norm of the gradient, answers


def train(
    family: type[Network],
    config: ModelConfig,
    data: TrainingData,
    report: Report | None = None,
    checkpoint: Path | None = None,
    iterations: int | None = None,
    team: Team = ALONE,
) -> FitResult:
    """Train a network; see `training.fit.fit`.

    Args:
        team: processes that train it together; each calls this with the same arguments, and only the first one writes
            checkpoints.

    Raises:
        TrainingError: the loss diverged, memory is short, a number is not finite, or no window holds a known answer.
        ConfigError: the checkpoint belongs to other settings, or the device lacks the precision.
    """
    assert isinstance(config, SequenceConfig)
    device = _device(config)
    sizes = f"batch_rows {config.batch_rows}, context {config.context}, width {config.width}"
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        short_of_memory(f"{sizes}: lower batch_rows first, it changes the least", RuntimeError),
    ):
        torch.manual_seed(config.seed)
        run = Run.of(family(config, Inputs.of(data.state)).to(device))
        forward: Forward = torch.compile(run.network, dynamic=True) if config.compiled else run.network
        if checkpoint is not None:
            restore(run, checkpoint)
        training = Part.training(data.train, run.network, device, len(run.curve))
        validation = Part.validation(data.valid, run.network, device) if data.valid is not None else None
        while not _finished(run, config, iterations):
            if config.windows.redrawn:
                training = training.redrawn(config, len(run.curve))
            _epoch(run, forward, training, checkpoint, team)
            progress = _progress(run, validation, team)
            if iterations is not None or improves(progress, run.curve[run.best_epoch - 1] if run.curve else None):
                run.best, run.best_epoch = _copy(run.judged), progress.iteration
            run.curve.append(progress)
            run.tally = Tally()
            if checkpoint is not None and team.first:
                store(run, checkpoint)
            if report is not None:
                report(progress)
    run.network.load_state_dict(run.best)
    return FitResult(run.network.to("cpu").eval(), run.best_epoch, run.best_auc, run.curve)


def hide_ids(batch: SequenceBatch, share: float) -> SequenceBatch:
    """Replace a share of the ids by the unknown id, so that it is trained (padding stays)."""
    if not share:
        return batch

    def hidden(ids: Tensor) -> Tensor:
        return ids.masked_fill(chance(ids.shape, share, ids.device) & (ids != PADDING), UNKNOWN_ID)

    return replace(
        batch,
        past_ids=hidden(batch.past_ids),
        past_concepts=hidden(batch.past_concepts),
        target_ids=hidden(batch.target_ids),
        target_concepts=hidden(batch.target_concepts),
    )


def _epoch(run: Run, forward: Forward, training: Part, checkpoint: Path | None, team: Team) -> None:
    """The steps of a pass over the training windows that are not done yet."""
    config, epoch, tally = run.network.config, len(run.curve), run.tally
    falls = plateaus([-each.loss if each.auc is None else each.auc for each in run.curve], config.plateau_epochs)
    steps = list(batches(training.segments, config.batch_rows, np.random.default_rng([config.seed, epoch])))
    run.network.train()
    seen: list[Seen] = []
    stored = time.perf_counter()
    started = stored - tally.seconds
    todo = [team.share(parts) for parts in steps[tally.steps :]]
    for number, batch in enumerate(training.feed(todo), start=tally.steps):
        rate = learning_rate(config, epoch + number / len(steps), falls)
        torch.manual_seed(_seed(config.seed, epoch, number, team.rank))
        seen.append(_step(run, forward, hide_ids(batch, config.unknown_share), rate, team))
        if run.average is not None:
            run.average.update(run.network, epoch * len(steps) + number)
        last = number + 1 == len(steps)
        due = checkpoint is not None and team.first and not last and time.perf_counter() - stored >= config.checkpoint_s
        if due or last or len(seen) == LOOK:
            _look(run, seen)
            tally.seconds = time.perf_counter() - started
        if due and checkpoint is not None:
            store(run, checkpoint)
            stored = time.perf_counter()


def _step(run: Run, forward: Forward, batch: SequenceBatch, rate: float, team: Team) -> Seen:
    """One update of the weights, by the answers of all workers."""
    config = run.network.config
    set_rate(run.optimizer, rate)
    run.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch.correct.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        logits = forward(batch)
    counts = chosen(batch.correct, config.last)
    answers = counts.sum()
    everywhere = team.total(answers.clone())
    loss = objective(logits, batch.correct, config) + run.network.penalty(batch, counts)
    loss = loss * (answers / everywhere.clamp(min=1))  # this worker's part of it
    loss.backward()  # type: ignore[no-untyped-call]
    team.sum_gradients(run.network.parameters())
    norm = nn.utils.clip_grad_norm_(run.network.parameters(), config.clip_norm)
    run.optimizer.step()
    return Seen(rate, torch.stack([team.total(loss.detach().clone()), norm, everywhere.to(loss.dtype)]))


def _look(run: Run, seen: list[Seen]) -> None:
    """Add the steps since the last look to the tally, and forget them.

    Raises:
        TrainingError: the weights have run away; it names the step.
    """
    config, tally = run.network.config, run.tally
    found = torch.stack([step.measured for step in seen]).tolist()  # the host waits here
    for step, (loss, norm, answers) in zip(seen, found, strict=True):
        tally.steps += 1
        if not (math.isfinite(norm) and loss <= DIVERGED):
            raise TrainingError(
                f"loss is {loss:.4g} and the gradient norm {norm:.4g} at step {tally.steps} of epoch "
                f"{len(run.curve) + 1} (learning rate {step.rate:.2g}); lower learning_rate (now "
                f"{config.learning_rate}) or clip_norm (now {config.clip_norm}), and look for wild numbers in the data"
            )
        tally.loss += loss * answers
        tally.answers += int(answers)
    seen.clear()


def _progress(run: Run, validation: Part | None, team: Team) -> Progress:
    """What the finished epoch came to, and its validation."""
    tally = run.tally
    score = None if validation is None else _auc(run.judged, validation, team)
    return Progress(len(run.curve) + 1, score, tally.loss / max(tally.answers, 1), tally.answers / tally.seconds)


def _auc(network: Network, part: Part, team: Team) -> float | None:
    counted = scored(part.rows)
    mine = network.probabilities(part.flat, part.flat, team.share(part.segments))
    probability = team.gather(mine, part.segments)
    return auc(part.rows.correct[counted], probability[counted])


def _finished(run: Run, config: SequenceConfig, iterations: int | None) -> bool:
    done = len(run.curve)
    if iterations is not None:
        return done >= iterations
    return done >= config.epochs or done - run.best_epoch >= config.patience


def _seed(*parts: int) -> int:
    """The seed of a step's dropout and hidden ids, from the run's seed, epoch, step and rank."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def _copy(network: Network) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _device(config: SequenceConfig) -> torch.device:
    """The GPU, if there is one.

    Raises:
        ConfigError: it has no bfloat16.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if config.precision == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"precision is bfloat16, which {torch.cuda.get_device_name()} lacks; set precision: float32")
    return torch.device("cuda")
