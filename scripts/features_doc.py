"""docs/features.md, made from the table of features: `python scripts/features_doc.py` brings it up to date."""

from itertools import groupby
from pathlib import Path

from dkt_ray.features.restated import AGGREGATES, LEVELS, ROW_FEATURES, collapsed
from dkt_ray.features.state import ID_COLUMNS
from dkt_ray.features.student import DATA, FEATURES, FORMULAS, PRIOR, uninformed

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "docs" / "features.md"


def _names(columns: object) -> str:
    return ", ".join(f"`{column}`" for column in columns)  # type: ignore[attr-defined]


INTRODUCTION = f"""# Features

Made from `FEATURES` (dkt_ray/features/student.py) by `python scripts/features_doc.py`; a test keeps it true.

Every number of a row reads the student's **visible past** and what was fitted on **other** users, nothing else:
`visible` is how many earlier rows the row may read; `now` is its own time where timestamps are times of showing (not
before the last visible row), else the time of the last visible row. `r` is the overall rate of right answers. A
student's rates start from {PRIOR:g} pseudo-answers at that rate. Fitted statistics back off question → test →
concept → head → overall.

They are **cross-fitted**: a training user's rows are encoded with what the other folds' users answered, were asked and
when; this holds for every number that an item has (rates, counts, curves, expected times, likeness, the size of its
test). Three things are those of all training users, so that they mean the same in every fold: which ids are known (of
`encoder.min_count` rows) and how they are numbered, the edges of `binning.kind=qcut`, and the scale of the numbers.

What is said of the question's concepts is the sum over them: a row that shares two of them counts twice. "The last n
answers" are rows, hidden ones included; a rate is that of the known answers among them. Rows without a test stand in
one test together, rows without a head in none. A session ends with a pause of more than 30 minutes; a time of more than
10 minutes between two rows is a pause, not time spent on a question.

Groups are switched by `encoder.features`. What the data cannot feed switches itself off, and `dkt prepare` says so.
`core` is always on, for baselines and bundles read it by name: without concepts,
{_names(uninformed(frozenset()))}
stay and tell nothing of their own (the first repeats the head's log-odds, or the overall; the others are constant).
"""


def text() -> str:
    """The whole document."""
    parts = [INTRODUCTION, *(_group(name, list(rows)) for name, rows in groupby(FEATURES, key=lambda each: each.group))]
    return "\n".join([*parts, _ids(), _functions(), _restated()]) + "\n"


def _group(name: str, features: list) -> str:
    lines = [f"## {name}", "", "| name | function | inputs | needs | what it is |", "|---|---|---|---|---|"]
    for each in features:
        inputs = ", ".join(f"`{quantity}`" for quantity in each.inputs)
        needs = ", ".join(sorted(each.needs)) or "–"
        lines.append(f"| `{each.name}` | {each.function.name.lower()} | {inputs} | {needs} | {each.doc} |")
    return "\n".join([*lines, ""])


def _ids() -> str:
    lines = [
        "## Id columns",
        "",
        "Categories, for embeddings and native categories: " + ", ".join(f"`{n}`" for n in ID_COLUMNS),
    ]
    lines += [
        "",
        "`lag` and `previous_elapsed` are bins of a duration; `encoder.binning` chooses them (log, cap, cut, qcut,",
        "edges) and what a first row has. `ngram` holds the last four answers, `hour` the UTC hour of `now`.",
        "`concepts` holds all concepts of the question. 0 is padding, 1 unknown (or too rare: `encoder.min_count`).",
        "",
    ]
    return "\n".join(lines)


def _functions() -> str:
    lines = ["## Functions", "", "| name | of its inputs a, b, c |", "|---|---|"]
    lines += [f"| {function.name.lower()} | {formula} |" for function, formula in FORMULAS.items()]
    lines += ["", "`needs`: " + "; ".join(f"{name} = {what}" for name, what in DATA.items()) + ".", ""]
    return "\n".join(lines)


def _restated() -> str:
    lines = ["## The reference's 33 row features, from the past only", "", "| reference | here |", "|---|---|"]
    lines += [f"| {name} | {_names(columns)} |" for name, columns in ROW_FEATURES.items()]
    lines += [
        "",
        "## Its 13 aggregates, at three levels",
        "",
        f"| reference | {' | '.join(LEVELS)} |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {' | '.join(_names([c]) if c else '–' for c in each)} |" for name, each in AGGREGATES.items()
    ]
    lines += ["", "Where several became one:", ""]
    lines += [f"- `{column}`: {', '.join(names)}" for column, names in collapsed().items()]
    return "\n".join(lines)


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
