"""Rows of some users, ready for batches, and the batches of an epoch, the next ones made while one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from dkt_ray.data.history import Int64
from dkt_ray.data.windows import draw
from dkt_ray.errors import TrainingError
from dkt_ray.features.batch import Rows, SequenceBatch
from dkt_ray.features.collate import FlatRows, collate, interactions, segments, window_segments
from dkt_ray.models.network import Network, SequenceConfig

AHEAD: Final = 2  # batches that are made while one is used


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of some users, ready for batches."""

    rows: Rows
    flat: FlatRows
    segments: Int64  # [S, 4]
    order: Tensor | None = None  # [R] rows that the segments point to; None: the rows themselves

    @classmethod
    def validation(cls, rows: Rows, network: Network, device: torch.device) -> Part:
        """Flatten once; every position is a target under the context rule.

        Raises:
            TrainingError: a numeric column is not finite.
        """
        _check_finite(rows, network, "validation")
        return cls(rows, network.flatten(rows).to(device), segments(rows, rows, network.config.context))

    @classmethod
    def training(cls, rows: Rows, network: Network, device: torch.device, epoch: int) -> Part:
        """Flatten once; the windows are those of the epoch.

        Raises:
            TrainingError: a numeric column is not finite, or no window holds a known answer.
        """
        _check_finite(rows, network, "training")
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

    def feed(self, steps: Sequence[Int64]) -> Iterator[SequenceBatch]:
        """The batches of the given steps, in order; a thread of its own makes them, and reads mapped rows from disk."""
        with ThreadPoolExecutor(1, "feed", torch.set_num_threads, (torch.get_num_threads(),)) as maker:
            coming: deque[Future[SequenceBatch]] = deque()
            for parts in steps:
                coming.append(maker.submit(collate, self.flat, self.flat, parts, self.order))
                if len(coming) > AHEAD:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()


def _check_finite(rows: Rows, network: Network, which: str) -> None:
    """Name the numeric columns that would make every loss NaN.

    Raises:
        TrainingError: there are some.
    """
    if not (network.numbers and rows.rows):
        return
    extremes = np.stack([rows.numbers.min(0), rows.numbers.max(0)])  # NaN is passed on
    wrong = np.flatnonzero(~np.isfinite(extremes).all(0))
    if len(wrong):
        names = network.fitted_on or tuple(f"number {column}" for column in range(network.numbers))
        found = [f"{names[column]} in {np.sum(~np.isfinite(rows.numbers[:, column]))}" for column in wrong]
        raise TrainingError(
            f"numeric columns hold NaN or infinity: {', '.join(found)} of {rows.rows} {which} rows; leave their groups "
            "out (encoder.features of dkt prepare), or set numbers: false to read ids and answers only"
        )
