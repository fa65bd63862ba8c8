"""The training loop of the sequence families: plain torch, resumable, and the same curve from the same seed.

Every epoch draws its windows, its batches and its dropout from (seed, epoch) alone, so a resumed run needs no generator
state and continues exactly where the checkpoint stands.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dkt_ray.data.history import Int64
from dkt_ray.data.windows import draw
from dkt_ray.errors import ConfigError, TrainingError
from dkt_ray.features.batch import PADDING, UNKNOWN_ID, Rows, SequenceBatch
from dkt_ray.features.collate import FlatRows, batches, collate, interactions, segments, window_segments
from dkt_ray.metrics import auc
from dkt_ray.models.base import ModelConfig
from dkt_ray.models.network import Inputs, Network, SequenceConfig
from dkt_ray.training.objectives import log_loss
from dkt_ray.training.progress import FitResult, Progress, Report, TrainingData, improves, scored

CHECKPOINT: Final = "training.safetensors"


@dataclass(eq=False)
class Run:
    """Where a training run stands: everything that a checkpoint holds."""

    network: Network
    optimizer: torch.optim.AdamW
    curve: list[Progress] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)  # weights of the best epoch
    best_epoch: int = 0

    @property
    def best_auc(self) -> float | None:
        """Validation AUC of the best epoch."""
        return self.curve[self.best_epoch - 1].auc if self.best_epoch else None


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of some users, ready for batches."""

    rows: Rows
    flat: FlatRows
    segments: Int64  # [S, 4]
    order: Tensor | None = None  # [R] rows that the segments point to; None: the rows themselves

    @classmethod
    def validation(cls, rows: Rows, network: Network, device: torch.device) -> Part:
        """Flatten once; every position is a target under the context rule."""
        return cls(rows, network.flatten(rows).to(device), segments(rows, rows, network.config.context))

    @classmethod
    def training(cls, rows: Rows, network: Network, device: torch.device, epoch: int) -> Part:
        """Flatten once; the windows are those of the epoch."""
        return cls(rows, network.flatten(rows).to(device), np.empty((0, 4), np.int64)).redrawn(network.config, epoch)

    def redrawn(self, config: SequenceConfig, epoch: int) -> Part:
        """The same rows in the windows of the epoch.

        Raises:
            TrainingError: no window holds a known answer.
        """
        windows = draw(interactions(self.rows), config.windows, config.context, config.seed, epoch)
        if self.rows.rows and not len(windows.user):
            raise TrainingError(
                f"windows.strategy {config.windows.strategy} finds no window with a known answer in {self.rows.rows} "
                f"training rows (windows.test_users is {config.windows.test_users}); choose another strategy"
            )
        order = torch.from_numpy(windows.order).to(self.flat.ids.device)
        return replace(self, segments=window_segments(windows, self.rows), order=order)


def train(
    family: type[Network],
    config: ModelConfig,
    data: TrainingData,
    report: Report | None = None,
    checkpoint: Path | None = None,
    iterations: int | None = None,
) -> FitResult:
    """Train a network; see `training.fit.fit`.

    Raises:
        TrainingError: the loss is not a number any more, or no window holds a known answer.
        ConfigError: the checkpoint belongs to other settings.
    """
    assert isinstance(config, SequenceConfig)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = family(config, Inputs.of(data.state)).to(device)
        run = Run(network, torch.optim.AdamW(parameter_groups(network, config)))
        if checkpoint is not None:
            restore(run, checkpoint)
        training = Part.training(data.train, network, device, len(run.curve))
        validation = Part.validation(data.valid, network, device) if data.valid is not None else None
        while not _finished(run, config, iterations):
            if config.windows.redrawn:
                training = training.redrawn(config, len(run.curve))
            progress = _epoch(run, training, validation)
            if iterations is not None or improves(progress, run.curve[run.best_epoch - 1] if run.curve else None):
                run.best, run.best_epoch = _copy(network), progress.iteration
            run.curve.append(progress)
            if checkpoint is not None:
                store(run, checkpoint)
            if report is not None:
                report(progress)
    network.load_state_dict(run.best)
    return FitResult(network.to("cpu").eval(), run.best_epoch, run.best_auc, run.curve)


def parameter_groups(network: nn.Module, config: SequenceConfig) -> list[dict[str, Any]]:
    """Weight matrices decay; embeddings (at their own share of the rate), biases, norms and other vectors do not."""
    tables = [module.weight for module in network.modules() if isinstance(module, nn.Embedding)]
    embeddings = {id(table) for table in tables}
    others = [p for p in network.parameters() if id(p) not in embeddings]
    return [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay, "share": 1.0},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "share": 1.0},
        {"params": tables, "weight_decay": 0.0, "share": config.embedding_rate},
    ]


def learning_rate(config: SequenceConfig, progress: float) -> float:
    """One cycle: linear rise to the peak, then half a cosine down to a hundredth of it.

    Args:
        config: gives the peak and the share of the rise.
        progress: share of all steps that are done, 0 to 1.
    """
    if progress < config.warmup:
        return config.learning_rate * max(progress / config.warmup, 0.01)
    done = (progress - config.warmup) / (1 - config.warmup)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def hide_ids(batch: SequenceBatch, share: float) -> SequenceBatch:
    """Replace a share of the ids by the unknown id, so that it is trained (padding stays)."""
    if not share:
        return batch

    def hidden(ids: Tensor) -> Tensor:
        return torch.where((torch.rand(ids.shape, device=ids.device) < share) & (ids != PADDING), UNKNOWN_ID, ids)

    return replace(
        batch,
        past_ids=hidden(batch.past_ids),
        past_concepts=hidden(batch.past_concepts),
        target_ids=hidden(batch.target_ids),
        target_concepts=hidden(batch.target_concepts),
    )


def store(run: Run, folder: Path) -> None:
    """Write the run's checkpoint, whole or not at all (one file, then a rename)."""
    tensors = {f"network.{name}": tensor for name, tensor in run.network.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in run.best.items()}
    for index, moments in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    facts = {"config": run.network.config.model_dump(mode="json"), "curve": run.curve, "best_epoch": run.best_epoch}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{CHECKPOINT}.partial"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, {"run": json.dumps(facts)})
    partial.replace(folder / CHECKPOINT)


def restore(run: Run, folder: Path) -> None:
    """Continue from the checkpoint in the folder, if there is one.

    Raises:
        ConfigError: it was written with other settings.
    """
    if not (folder / CHECKPOINT).exists():
        return
    groups: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "optimizer": {}}
    with safe_open(folder / CHECKPOINT, "pt") as file:
        facts = json.loads(file.metadata()["run"])
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            group, _, name = key.partition(".")
            groups[group][name] = file.get_tensor(key)
    _same_settings(facts["config"], run.network.config, folder)
    run.network.load_state_dict(groups["network"])
    run.best, run.best_epoch = groups["best"], facts["best_epoch"]
    run.curve = [Progress(*values) for values in facts["curve"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in groups["optimizer"].items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = tensor
    run.optimizer.load_state_dict({"state": moments, "param_groups": run.optimizer.state_dict()["param_groups"]})


def _epoch(run: Run, training: Part, validation: Part | None) -> Progress:
    """One pass over the training windows, then the validation AUC."""
    network, config, epoch = run.network, run.network.config, len(run.curve)
    started = time.perf_counter()
    torch.manual_seed((config.seed << 20) + epoch + 1)
    network.train()
    total, answers = 0.0, 0
    steps = list(batches(training.segments, config.batch_rows, np.random.default_rng([config.seed, epoch])))
    for number, parts in enumerate(steps):
        rate = learning_rate(config, (epoch + number / len(steps)) / config.epochs)
        batch = collate(training.flat, training.flat, parts, training.order)
        loss = _step(run, hide_ids(batch, config.unknown_share), rate)
        if not math.isfinite(loss):
            raise TrainingError(
                f"loss is {loss} at step {number + 1} of epoch {epoch + 1} (learning rate {rate:.2g}); "
                f"lower learning_rate (now {config.learning_rate}) or clip_norm (now {config.clip_norm})"
            )
        known = int((batch.correct >= 0).sum())
        total, answers = total + loss * known, answers + known
    seconds = time.perf_counter() - started
    score = None if validation is None else _auc(network, validation)
    return Progress(epoch + 1, score, total / max(answers, 1), answers / seconds)


def _step(run: Run, batch: SequenceBatch, rate: float) -> float:
    """One update of the weights; the loss before it."""
    config = run.network.config
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["share"]
    run.optimizer.zero_grad(set_to_none=True)
    loss = log_loss(run.network(batch), batch.correct, config.last)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(run.network.parameters(), config.clip_norm)
    run.optimizer.step()
    return float(loss.detach())


def _auc(network: Network, part: Part) -> float | None:
    counted = scored(part.rows)
    probability = network.probabilities(part.flat, part.flat, part.segments)
    return auc(part.rows.correct[counted], probability[counted])


def _finished(run: Run, config: SequenceConfig, iterations: int | None) -> bool:
    done = len(run.curve)
    if iterations is not None:
        return done >= iterations
    return done >= config.epochs or done - run.best_epoch >= config.patience


def _copy(network: Network) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"{name} {before.get(name)!r} there, {now.get(name)!r} here"


def _same_settings(before: dict[str, Any], config: SequenceConfig, folder: Path) -> None:
    different = list(_differences(before, config.model_dump(mode="json")))
    if different:
        raise ConfigError(
            f"checkpoint {folder} has other settings ({'; '.join(different)}); remove it or use another folder"
        )
