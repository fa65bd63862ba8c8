"""Where a training run stands, and its checkpoint: one file, there as a whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dkt_ray.errors import ConfigError
from dkt_ray.models.base import ModelConfig
from dkt_ray.models.network import Network, SequenceConfig
from dkt_ray.training.averaging import MovingAverage
from dkt_ray.training.optimizers import OF_CONFIG, make_optimizer, put_state, state_of
from dkt_ray.training.progress import Progress

CHECKPOINT: Final = "training.safetensors"
FREE: Final = frozenset({"checkpoint_s"})  # settings that a resumed run may have changed: no result depends on them


@dataclass
class Tally:
    """What the running epoch has come to so far."""

    steps: int = 0
    loss: float = 0.0  # sum over the answers
    answers: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class Run:
    """A training run: everything that a checkpoint holds."""

    network: Network
    optimizer: torch.optim.Optimizer
    average: MovingAverage[Network] | None = None
    curve: list[Progress] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)  # weights of the best epoch
    best_epoch: int = 0
    tally: Tally = field(default_factory=Tally)

    @classmethod
    def of(cls, network: Network) -> Run:
        """A run that has not begun."""
        config = network.config
        average = MovingAverage(network, config.averaging) if config.averaging else None
        return cls(network, make_optimizer(network, config), average)

    @property
    def judged(self) -> Network:
        """The network that is validated and kept: of the averaged weights, if there are any."""
        return self.network if self.average is None else self.average.network

    @property
    def best_auc(self) -> float | None:
        """Validation AUC of the best epoch."""
        return self.curve[self.best_epoch - 1].auc if self.best_epoch else None


def store(run: Run, folder: Path) -> None:
    """Write the run's checkpoint, whole or not at all (one file, then a rename)."""
    moments, groups = state_of(run.optimizer)
    averaged = {} if run.average is None else run.average.network.state_dict()
    parts = {"network": run.network.state_dict(), "average": averaged, "best": run.best, "optimizer": moments}
    tensors = {f"{part}.{name}": tensor.contiguous() for part, held in parts.items() for name, tensor in held.items()}
    facts = {
        "config": run.network.config.model_dump(mode="json"),
        "curve": run.curve,
        "best_epoch": run.best_epoch,
        "tally": asdict(run.tally),
        "groups": groups,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write(tensors, facts, folder)


def restore(run: Run, folder: Path) -> None:
    """Continue from the checkpoint in the folder, if there is one.

    Raises:
        ConfigError: it was written with other settings.
    """
    if not (folder / CHECKPOINT).exists():
        return
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "best": {}, "optimizer": {}}
    with safe_open(folder / CHECKPOINT, "pt") as file:
        facts = json.loads(file.metadata()["run"])
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            part, _, name = key.partition(".")
            parts[part][name] = file.get_tensor(key)
    _same_settings(facts["config"], run.network.config, folder)
    run.network.load_state_dict(parts["network"])
    if run.average is not None:
        run.average.network.load_state_dict(parts["average"])
    put_state(run.optimizer, parts["optimizer"], facts["groups"])
    run.best, run.best_epoch = parts["best"], facts["best_epoch"]
    run.curve = [Progress(*values) for values in facts["curve"]]
    run.tally = Tally(**facts["tally"])


def follow(folder: Path, config: ModelConfig, names: Collection[str]) -> None:
    """Let the checkpoint in the folder, if there is one, go on with other values of some settings.

    Args:
        folder: of the checkpoint.
        config: the settings from now on.
        names: those which may differ: a run can change them on the way.
    """
    path = folder / CHECKPOINT
    if not path.exists() or not names:
        return
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["run"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    now = config.model_dump(mode="json", include=set(names))
    if now != {name: facts["config"][name] for name in now}:
        facts["config"] |= now
        facts["groups"] = [{key: group[key] for key in group if key not in OF_CONFIG} for group in facts["groups"]]
        _write(tensors, facts, folder)


def _write(tensors: dict[str, Tensor], facts: dict[str, Any], folder: Path) -> None:
    partial = folder / f"{CHECKPOINT}.partial"
    save_file(tensors, partial, {"run": json.dumps(facts)})
    partial.replace(folder / CHECKPOINT)


def _same_settings(before: dict[str, Any], config: SequenceConfig, folder: Path) -> None:
    different = list(_differences(before, config.model_dump(mode="json")))
    if different:
        raise ConfigError(
            f"checkpoint {folder} has other settings ({'; '.join(different)}); remove it or use another folder"
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for name in sorted((before.keys() | now.keys()) - FREE):
        if before.get(name) != now.get(name):
            yield f"{name} {before.get(name)!r} there, {now.get(name)!r} here"
