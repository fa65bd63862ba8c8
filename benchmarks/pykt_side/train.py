"""Train one of pyKT's models as its `train_model` does, within a limit, and continue where an earlier call stopped.

The loop is that of `pykt.models.train_model`: windows in the loader's order, the validation figure after each epoch,
the weights kept where it rises by more than 0.001, an end after ten epochs without. It is written out here because
`train_model` knows no limit and cannot continue. The limit counts processor time, so that a busy machine does not
shorten a training; the weights that stand when it is over are validated, too.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.pykt_side.toolkit import SETTINGS, Loaders, new_model, step, validation_auc
from benchmarks.turns import say

RISE: Final = 1e-3  # pyKT: a smaller rise of the validation figure is none
PATIENCE: Final = 10  # pyKT: epochs
EPOCHS: Final = 200  # pyKT: num_epochs
STATE: Final = "state.pt"
SAVE_S: Final = 120.0  # processor seconds from one checkpoint to the next


@dataclass
class Course:
    """How far a training has come."""

    epoch: int = 0  # complete epochs
    steps: int = 0  # of the epoch under way
    seconds: float = 0.0  # processor time, validation included
    epoch_began: float = 0.0  # in these seconds
    epoch_seconds: float = 0.0  # of the last complete epoch, validation included
    best_epoch: float = 0.0
    best_auc: float = 0.0
    ended: str = ""  # "early" or "time" or "epochs", when over

    def exhausted(self) -> bool:
        """Whether pyKT's rule ends it."""
        return self.epoch - self.best_epoch >= PATIENCE


class Training:
    """A model in training, and its checkpoint."""

    def __init__(self, name: str, data: Path, folder: Path, seed: int) -> None:
        self.name, self.folder = name, folder
        self.model = new_model(name, data, seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), SETTINGS[name].learning_rate)
        self.best = copy.deepcopy(self.model.state_dict())
        self.course = Course()
        self.started = time.process_time()
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE).exists():
            self._restore()

    def run(self, loaders: Loaders, limit_s: float) -> Course:
        """Train until pyKT's rule or the limit ends it; the model then has its best weights."""
        course = self.course
        if course.ended != "early":
            course.ended = ""
        while not course.ended:
            if not course.steps:
                course.epoch_began = self._seconds()
            if self._epoch(loaders, limit_s):
                course.epoch, course.steps = course.epoch + 1, 0
                self._validate(loaders, float(course.epoch))
                course.epoch_seconds = self._seconds() - course.epoch_began
                course.ended = "early" if course.exhausted() else "epochs" if course.epoch >= EPOCHS else ""
            else:
                self._validate(loaders, course.epoch + course.steps / len(loaders.train))
                course.ended = "time"
            self._save()
        self.model.load_state_dict(self.best)
        course.seconds, self.started = self._seconds(), time.process_time()
        return course

    def _epoch(self, loaders: Loaders, limit_s: float) -> bool:
        """The rest of an epoch; False where the limit ends it."""
        saved = self._seconds()
        for number, data in enumerate(loaders.train):
            if number < self.course.steps:  # done before the checkpoint
                continue
            if self._seconds() >= limit_s:
                return False
            step(self.model, self.optimizer, data)
            self.course.steps = number + 1
            if self._seconds() - saved > SAVE_S:
                self._save()
                saved = self._seconds()
        return True

    def _validate(self, loaders: Loaders, epoch: float) -> None:
        auc = validation_auc(self.name, self.model, loaders.valid)
        if auc > self.course.best_auc + RISE:
            self.course.best_auc, self.course.best_epoch = auc, epoch
            self.best = copy.deepcopy(self.model.state_dict())
        seconds = round(self._seconds(), 1)
        say(model=self.name, epoch=round(epoch, 3), valid_auc=round(auc, 5), seconds=seconds)

    def _seconds(self) -> float:
        """Processor seconds per thread, those before the checkpoint included."""
        return self.course.seconds + (time.process_time() - self.started) / torch.get_num_threads()

    def _save(self) -> None:
        course = asdict(self.course) | {"seconds": self._seconds()}
        parts: dict[str, Any] = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        partial = self.folder / f"{STATE}.partial"
        torch.save(parts | {"best": self.best, "course": course, "random": torch.get_rng_state()}, partial)
        partial.replace(self.folder / STATE)

    def _restore(self) -> None:
        found = torch.load(self.folder / STATE)
        self.model.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.best, self.course = found["best"], Course(**found["course"])
        torch.set_rng_state(found["random"])
