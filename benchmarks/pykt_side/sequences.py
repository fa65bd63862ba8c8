"""From six-column logs to pyKT's files, by pyKT's own functions; only the folds are given instead of drawn.

A question with k concepts becomes k rows; rows are cut into windows of 200, the last one padded. Users with fewer than
3 questions, and a rest of fewer than 3 rows, train nothing. All of that is the toolkit's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from benchmarks.pykt_side.layout import MAXLEN
from benchmarks.pykt_side.toolkit import CONFIG, DATASET, VALIDATION, quietly, split_datasets

FEWEST: Final = 3  # pyKT's min_seq_len
TRAIN_FILE: Final = "train_valid_sequences.csv"
TEST_FILE: Final = "test_sequences.csv"
HISTORIES: Final = "histories.parquet"  # of the users to be scored, whole
FOLDS: Final = {"fold1": 0, "fold2": 1, "fold3": 2, "fold4": VALIDATION}  # the others are scored
SCORED: Final = -1


class Written(NamedTuple):
    """What was written."""

    users: int
    questions: int  # interactions
    rows: int  # concepts of interactions
    windows: dict[str, int]  # by fold


def write(logs: Path, split: Path, folder: Path, joined: bool = False) -> Written:
    """Write the windows of every fold, the histories to be scored, and the toolkit's configuration.

    Args:
        logs: CSV with userID, assessmentItemID, answerCode, Timestamp and KnowledgeTag (concepts joined by `_`).
        split: CSV `userID,split`; fold1 to fold3 train, fold4 validates, fold5 is scored.
        folder: to write to.
        joined: take the concepts of a question together as one concept, so that a question is one row and no row of it
            tells the answer of the next.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for cached in folder.glob("*.pkl"):  # pyKT reads the cache of a file without a look at the file
        cached.unlink()
    table = pd.read_csv(logs, dtype=str)
    if joined:
        table["KnowledgeTag"] = table["KnowledgeTag"].str.replace("_", "+")
    _write_lines(table, folder / "data.txt")
    frame, keys = quietly(split_datasets.read_data, str(folder / "data.txt"), 1)
    frame, keys = quietly(split_datasets.extend_multi_concepts, frame, keys)
    names = frame["uid"]
    frame, ids = quietly(split_datasets.id_mapping, frame)
    fold_of = pd.read_csv(split, dtype=str).set_index("userID")["split"]
    frame["fold"] = names.map(fold_of).map(FOLDS).fillna(SCORED).astype(int)
    questions = np.array([row.split(",").count("0") for row in frame["is_repeat"]])
    rows = sum(row.count(",") + 1 for row in frame["is_repeat"])
    _write_histories(frame.assign(user=names)[frame["fold"] == SCORED], folder / HISTORIES)
    long = frame[questions >= FEWEST]
    windows = quietly(split_datasets.generate_sequences, long, keys | {"fold"}, FEWEST, MAXLEN)
    windows[windows["fold"] != SCORED].to_csv(folder / TRAIN_FILE, index=False)
    windows[windows["fold"] == SCORED].to_csv(folder / TEST_FILE, index=False)
    _write_config(len(ids["questions"]), len(ids["concepts"]), folder)
    counts = {str(fold): int(count) for fold, count in windows["fold"].value_counts().sort_index().items()}
    return Written(len(frame), int(questions.sum()), rows, counts)


def _write_lines(logs: pd.DataFrame, path: Path) -> None:
    """pyKT's own format, six lines a user; the models read no times, so there are none."""
    ordered = logs.sort_values(["userID", "Timestamp"], kind="stable")
    with path.open("w") as file:
        for user, rows in ordered.groupby("userID", sort=False):
            columns = (rows["assessmentItemID"], rows["KnowledgeTag"], rows["answerCode"])
            file.write("\n".join([f"{user},{len(rows)}", *map(",".join, columns), "NA", "NA"]) + "\n")


def _write_histories(scored: pd.DataFrame, path: Path) -> None:
    lists = {
        name: [np.array(row.split(","), np.int32) for row in scored[name]]
        for name in ("questions", "concepts", "responses", "is_repeat")
    }
    pd.DataFrame({"user": scored["user"].to_numpy(), **lists}).to_parquet(path)


def _write_config(questions: int, concepts: int, folder: Path) -> None:
    facts = {
        "dpath": str(folder.resolve()),
        "num_q": questions,
        "num_c": concepts,
        "input_type": ["questions", "concepts"],
        "emb_path": "",
        "train_valid_file": TRAIN_FILE,
        "test_file": TEST_FILE,
        "folds": sorted(FOLDS.values()),
    }
    (folder / CONFIG).write_text(json.dumps({DATASET: facts}, indent=2))
