"""`dkt windows`: how many windows each strategy makes of a dataset or of raw logs, and how often it reads a row."""

from __future__ import annotations

import logging
import time
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from dkt_ray.config import Config
from dkt_ray.data.adapters import catalog
from dkt_ray.data.buckets import deal, merge
from dkt_ray.data.history import Histories, Int32, Strings, graded
from dkt_ray.data.ingest import DataConfig, inspect
from dkt_ray.data.parse import parse
from dkt_ray.data.windows import STRATEGIES, Interactions, WindowConfig, Windows, draw, sizes_of_tests
from dkt_ray.errors import InputError
from dkt_ray.features.dataset import Dataset
from dkt_ray.features.structure import decompose
from dkt_ray.storage import open_store

logger = logging.getLogger(__name__)

# The reference's counts of its own 2,266,586 training rows (user_head: of these and the visible rows of test users).
REFERENCE: Final = {
    "user_head_mid": "365,164",
    "user_head": "19,739 with test users",
    "user_test": "365,164",
    "chunk_tests": "126,408 by its slip",
    "chunk_rows": "116,487",
}
HEADINGS: Final = (
    "strategy",
    "windows",
    "rows",
    "rows/window",
    "repeats",
    "answers",
    "+ test users",
    "answers",
    "reference",
)


class WindowsConfig(Config):
    """Settings of `dkt windows`."""

    store: str = "data/store"
    """A folder or s3://bucket/prefix."""
    dataset: str = "default"
    """The dataset whose training users are counted."""
    path: str | None = None
    """Count raw logs (a file, folder or glob) instead of a dataset."""
    format: str = catalog.AUTO
    """With path: what the files are (docs/data-formats.md); auto: the six-column schema, or what is recognised."""
    columns: dict[str, str] = Field(default_factory=dict)
    """With path: columns with other names than the six-column schema's, e.g. {user: student_id}."""
    context: int = Field(default=100, gt=0)
    """C of the context rule, and L of the others where windows.length is null."""
    windows: WindowConfig = WindowConfig()
    """The numbers of the strategies; all strategies are counted."""
    seed: int = 0
    """Seed of the random strategies."""


class Counted(NamedTuple):
    """What one strategy makes of some interactions."""

    windows: int
    rows: int  # reads of rows, repeats and context included
    repeats: float  # reads per row that is read
    answers: int  # known answers that are trained on, repeats included


def run(config: WindowsConfig) -> dict[str, Any]:
    """Log the table of all strategies.

    Returns:
        users, rows, visible_rows (with a known answer), seconds, and for each strategy what `Counted` says: of all
        users, and under `without_test_users` of those without a hidden answer.
    """
    started = time.perf_counter()
    if config.path is None:
        histories, _ = Dataset.open(open_store(config.store), config.dataset).load_histories()
    else:
        histories = read(DataConfig(path=config.path, format=config.format, columns=config.columns))
    rows = interactions(histories)
    counted = {test_users: count(rows, config, test_users) for test_users in (False, True)}
    facts = {
        "users": len(histories.users),
        "rows": histories.rows,
        "visible_rows": int(graded(histories.correct).sum()),
    }
    logger.info("%(users)d users, %(rows)d rows, %(visible_rows)d of them with a known answer", facts)
    logger.info("windows of the strategies\n%s", text_table(counted[False], counted[True]))
    return {
        **facts,
        "seconds": round(time.perf_counter() - started, 2),
        "strategies": {name: each._asdict() for name, each in counted[True].items()},
        "without_test_users": {name: each._asdict() for name, each in counted[False].items()},
    }


def interactions(histories: Histories) -> Interactions:
    """What the strategies read of histories; a question whose id is not of the competition's form has head and mid "".

    Rows of such questions are grouped by test where the strategy asks for head and mid.
    """
    parts = decompose(histories.question.values)
    foreign = (parts["head"] == "")[histories.question.codes]
    head, mid = (_codes(parts[name])[histories.question.codes] for name in ("head", "mid"))
    mid = np.where(foreign, histories.test.codes, mid).astype(np.int32)
    sizes = sizes_of_tests(histories.question.codes, histories.test.codes)
    return Interactions(histories.offsets, histories.correct, histories.test.codes, head, mid, sizes)


def count(rows: Interactions, config: WindowsConfig, test_users: bool) -> dict[str, Counted]:
    """Count the windows of every strategy, and of length-balanced sampling of whole histories."""
    plain = config.windows.model_copy(update={"test_users": test_users, "balanced": False})
    settings = {str(name): plain.model_copy(update={"strategy": name}) for name in STRATEGIES}
    settings["last, balanced"] = settings["last"].model_copy(update={"balanced": True})
    return {name: _counted(draw(rows, each, config.context, config.seed), rows) for name, each in settings.items()}


def text_table(without: dict[str, Counted], added: dict[str, Counted]) -> str:
    """The counts of every strategy, without and with the visible rows of test users."""
    lines = [HEADINGS] + [
        (
            name,
            f"{one.windows:,}",
            f"{one.rows:,}",
            f"{one.rows / max(one.windows, 1):.2f}",
            f"{one.repeats:.3f}",
            f"{one.answers:,}",
            f"{both.windows:,}",
            f"{both.answers:,}",
            REFERENCE.get(name, ""),
        )
        for (name, one), both in zip(without.items(), added.values(), strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def read(data: DataConfig) -> Histories:
    """Read raw logs of any known format into histories in this process; bad rows are left out and counted in a warning.

    Raises:
        InputError: no file, another format, a missing column, timestamps in some files only, or no row.
    """
    inputs = inspect(data)
    adapter = catalog.FORMATS[inputs.format]
    shards: list[pa.Table] = []
    bad, dropped = 0, 0
    for source in catalog.sources(adapter, list(inputs.columns)):
        for block in catalog.blocks(adapter, source, inputs.columns[source.path], inputs.questions):
            parsed = parse(block.raw, block.file, block.rows, adapter.milliseconds)
            shards += deal(parsed.good, source.number, 1).values()
            bad += len(block.malformed) + len(parsed.rejected)
            dropped += sum(block.dropped.values())
    if dropped:
        logger.info("%s: %d rows are left out, as the format %s says", data.path, dropped, adapter.name)
    if bad:
        logger.warning("%s: %d bad rows are left out; dkt prepare lists them", data.path, bad)
    if not any(len(shard) for shard in shards):
        raise InputError(f"{data.path}: there is no valid row; expected one interaction a line")
    return merge(shards, inputs.timed).histories


def _counted(windows: Windows, rows: Interactions) -> Counted:
    known = np.concatenate([[0], np.cumsum(graded(rows.correct)[windows.order])])
    answers = int((known[windows.stop] - known[windows.score_from]).sum())
    starts, stops = (np.bincount(edge, minlength=len(windows.order) + 1) for edge in (windows.start, windows.stop))
    reads = np.cumsum(starts - stops)  # [R + 1] how often each row of the index is read
    return Counted(
        len(windows.user), int(reads.sum()), round(float(reads.sum() / max((reads > 0).sum(), 1)), 4), answers
    )


def _codes(values: Strings) -> Int32:
    return np.unique(values, return_inverse=True)[1].astype(np.int32)
