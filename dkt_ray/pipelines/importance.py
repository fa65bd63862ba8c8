"""The importance plot of a model: how much of what it learned rests on each column."""

from __future__ import annotations

from typing import Final

from dkt_ray.models.base import Model
from dkt_ray.pipelines.charts import bars
from dkt_ray.storage import Store

PLOT: Final = "importance.svg"
MOST: Final = 40  # columns in the plot


def draw_importance(model: Model, name: str, folder: Store) -> None:
    """Write the plot of a model into its folder, where its family knows what its columns matter."""
    shares = model.importance()
    if shares is None:
        return
    most = sorted(shares.items(), key=lambda each: (-each[1], each[0]))[:MOST]
    title = f"{name}: share of the gain, {len(most)} of {len(shares)} columns"
    folder.write(PLOT, bars(dict(most), title).encode())
