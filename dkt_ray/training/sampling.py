"""(Ray) A share of the training users, the same one every time: trials on it are cheap, members read everyone."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from dkt_ray.data.splits import stable_hash
from dkt_ray.errors import ConfigError
from dkt_ray.training.folds import TrainingUsers, select

_SALT: Final = 0x5A3B_1E5D  # folds hang on the plain hash: theirs and ours must know nothing of each other


def sampled(users: TrainingUsers, share: float, seed: int) -> TrainingUsers:
    """A share of the users, drawn by a stable hash: of each fold about alike, and more users hold the fewer.

    Args:
        users: all training users.
        share: of them that are kept, 0 to 1; 1: all.
        seed: another seed, other users.

    Raises:
        ConfigError: a fold has no user left.
    """
    if share >= 1:
        return users
    chosen = stable_hash(users.split.users, seed ^ _SALT) < np.uint64(share * 2.0**64)
    lost = np.setdiff1d(users.split.fold, users.split.fold[chosen])
    if len(lost):
        raise ConfigError(
            f"sample is {share:g}, which leaves no user of fold {lost[0]} ({len(users.split.users)} users in all); "
            "raise it, or leave it out"
        )
    return replace(users, split=select(users.split, chosen))
