"""The only module that imports pyKT: its loader, training step and figures, the models' settings, and the CPU shim.

The shim is two names. pyKT's loaders make their tensors by `torch.cuda.LongTensor` and `torch.cuda.FloatTensor`, which
exist where there is a GPU; here both are the CPU's, before pyKT is imported. Nothing else is changed: the models choose
their device themselves. Nothing of pyKT is copied into dkt-ray.
"""

# ruff: noqa: E402 (the shim stands before the imports)
from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader

from benchmarks.pykt_side.layout import MAXLEN

torch.cuda.LongTensor, torch.cuda.FloatTensor = torch.LongTensor, torch.FloatTensor

from pykt.datasets import init_dataset4train
from pykt.datasets.data_loader import KTDataset
from pykt.models import akt, evaluate_model, init_model, saint, sakt
from pykt.models.train_model import model_forward
from pykt.preprocess import split_datasets

__all__ = ["KTDataset", "akt", "evaluate_model", "saint", "sakt", "split_datasets"]

T = TypeVar("T")

VALIDATION: Final = 3  # fold of pyKT's files that holds fold 4 of the split
CONFIG: Final = "data_config.json"
DATASET: Final = "benchmark"


class Setting(NamedTuple):
    """How a model is made and trained."""

    model: dict[str, Any]  # arguments of the model's class
    learning_rate: float
    batch: int  # windows per step


# Width 64; all else as in pyKT's configs/kt_config.json, batch sizes as in its examples/wandb_train.py. The learning
# rate of AKT is that of examples/wandb_akt_train.py: kt_config.json's 1e-5 would not move it within an hour.
SETTINGS: Final[dict[str, Setting]] = {
    "dkt": Setting({"emb_size": 64, "dropout": 0.1}, 1e-3, 256),
    "sakt": Setting({"emb_size": 64, "num_attn_heads": 8, "dropout": 0.2, "num_en": 1, "seq_len": MAXLEN}, 1e-3, 64),
    "saint": Setting({"emb_size": 64, "num_attn_heads": 8, "dropout": 0.2, "n_blocks": 2, "seq_len": MAXLEN}, 1e-3, 64),
    "akt": Setting({"d_model": 64, "d_ff": 256, "num_attn_heads": 8, "dropout": 0.05, "n_blocks": 1}, 1e-4, 64),
}


class Loaders(NamedTuple):
    """Windows of the training and of the validation users, in pyKT's order (it does not shuffle)."""

    train: DataLoader
    valid: DataLoader


def loaders(name: str, folder: Path, batch: int) -> Loaders:
    """The toolkit's own loaders of the files that `sequences.write` made."""
    config = json.loads((folder / CONFIG).read_text())
    train, valid, *_ = quietly(init_dataset4train, DATASET, name, config, VALIDATION, batch)
    return Loaders(train, valid)


def new_model(name: str, folder: Path, seed: int = 42) -> torch.nn.Module:
    """A model as `init_model` makes it."""
    config = json.loads((folder / CONFIG).read_text())[DATASET]
    torch.manual_seed(seed)
    return quietly(init_model, name, SETTINGS[name].model, config, "qid")


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, data: dict[str, torch.Tensor]) -> float:
    """One training step, as in the loop of `pykt.models.train_model`, which reads the loss each time, too."""
    model.train()
    loss = model_forward(model, data)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def validation_auc(name: str, model: torch.nn.Module, valid: DataLoader) -> float:
    """The toolkit's own figure for early stopping: over concept rows, not over questions."""
    return float(quietly(evaluate_model.evaluate, model, valid, name)[0])


def quietly(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Call without what the toolkit prints, which would be mixed with our lines of JSON."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*arguments, **named)
