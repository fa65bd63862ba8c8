"""Every table of the analysis equals what plain Python finds, row by row, on small random histories."""

import datetime
import math
import statistics
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from scipy import stats

from dkt_ray.analysis import accuracy, aggregates, curves, distributions, drift, exposure, measures, prerequisites
from dkt_ray.analysis.interactions import interactions
from dkt_ray.data.history import Histories
from tests.builders import random_histories

HISTORIES = random_histories(np.random.default_rng(5), 40)
LOG = interactions(HISTORIES)
PARTS = (("head", slice(1, 4)), ("mid", slice(4, 7)), ("tail", slice(7, 10)))
DAY = 86_400


def plain(histories: Histories) -> list[dict]:
    """The rows as dictionaries, users by name; None where there is nothing."""
    found = []
    for u in sorted(range(len(histories.users)), key=lambda u: str(histories.users[u])):
        for place, row in enumerate(range(histories.offsets[u], histories.offsets[u + 1])):
            question = histories.question.strings()[row]
            correct = int(histories.correct[row])
            seconds = None if histories.timestamp is None else int(histories.timestamp[row]) // 1000
            parts = {name: int(question[at]) if question[0] == "A" else None for name, at in PARTS}
            found.append(
                {
                    "user": histories.users[u], "position": place, "question": question,
                    "test": histories.test.strings()[row] or None,
                    "tags": [tag for tag in histories.concepts.strings()[row].split("_") if tag],
                    "correct": None if correct < 0 else correct, "s": seconds, **parts,
                }
            )  # fmt: skip
    return found


ROWS = plain(HISTORIES)
KNOWN = [row for row in ROWS if row["correct"] is not None]


def grouped(rows, *keys):
    """Rows by key, rows with a missing key left out."""
    groups = defaultdict(list)
    for row in rows:
        key = tuple(row[name] for name in keys)
        if None not in key:
            groups[key if len(keys) > 1 else key[0]].append(row)
    return groups


def mean(rows):
    answers = [row["correct"] for row in rows if row["correct"] is not None]
    return sum(answers) / len(answers) if answers else None


def tagged(rows):
    return [row | {"tag": tag} for row in rows for tag in row["tags"]]


def counted(table: pl.DataFrame, key: str) -> dict:
    return {row[key]: (row["n"], row["right"]) for row in table.iter_rows(named=True)}


def expected(groups) -> dict:
    return {key: (len(rows), sum(row["correct"] for row in rows)) for key, rows in groups.items()}


def test_units_and_their_moments_are_those_of_plain_python():
    found = distributions.units(LOG)
    for unit, rows in (("user", KNOWN), ("question", KNOWN), ("test", KNOWN), ("tag", tagged(KNOWN))):
        groups = grouped(rows, unit)
        assert counted(found[unit], unit) == expected(groups)
        users = {key: len({row["user"] for row in each}) for key, each in groups.items()}
        if unit != "user":
            assert dict(found[unit].select(unit, "users").iter_rows()) == users
    by_test, by_tag = grouped(KNOWN, "test"), grouped(tagged(KNOWN), "tag")
    tags = {key: len({tag for row in rows for tag in row["tags"]}) for key, rows in by_test.items()}
    assert dict(found["test"].select("test", "tags").iter_rows()) == tags
    tests = {key: len({row["test"] for row in rows} - {None}) for key, rows in by_tag.items()}
    assert dict(found["tag"].select("tag", "tests").iter_rows()) == tests
    cells = {row["statistic"]: row for row in distributions.statistics(found).iter_rows(named=True)}
    assert len(cells) == 15
    values = [mean(rows) for rows in grouped(KNOWN, "user").values()]
    cell = cells["accuracy per user"]
    assert [cell["n"], cell["min"], cell["max"]] == [len(values), min(values), max(values)]
    assert [cell["mean"], cell["std"]] == pytest.approx([statistics.fmean(values), statistics.stdev(values)])
    assert [cell[q] for q in ("25 %", "50 %", "75 %")] == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]).tolist())
    sizes = Counter(len({row["question"] for row in rows}) for rows in by_test.values())
    table = distributions.sizes(found).filter(pl.col("statistic") == "questions per test")
    assert dict(table.select("size", "n").iter_rows()) == dict(sizes)


def test_derived_counts():
    found = dict(distributions.counts(LOG).iter_rows())
    pairs = {(row["user"], row["question"]) for row in KNOWN}
    size = {test: len({row["question"] for row in rows}) for test, rows in grouped(KNOWN, "test").items()}
    passes = {key: len(rows) for key, rows in grouped(KNOWN, "user", "test").items()}
    assert found == {
        "users": 40,
        "rows": len(ROWS),
        "known answers": len(KNOWN),
        "hidden answers": len(ROWS) - len(KNOWN),
        "right answers": sum(row["correct"] for row in KNOWN),
        "questions": len({row["question"] for row in KNOWN}),
        "tests": len(size),
        "tags": len({row["tag"] for row in tagged(KNOWN)}),
        "(user, question) pairs": len(pairs),
        "repeated answers": len(KNOWN) - len(pairs),
        "(user, test) pairs": len(passes),
        "cycles: passes of a user through a test": sum(math.ceil(n / size[key[1]]) for key, n in passes.items()),
        "(user, head) pairs": len(grouped(KNOWN, "user", "head")),
        "distinct seconds": len({row["s"] for row in KNOWN}),
        "rows in the busiest second": max(Counter(row["s"] for row in KNOWN).values()),
    }


def test_structure():
    heads = {row["head"]: row for row in distributions.heads(LOG).iter_rows(named=True)}
    for head, rows in grouped(KNOWN, "head").items():
        assert heads[head] == {
            "head": head, "answers": len(rows), "users": len({row["user"] for row in rows}),
            "questions": len({row["question"] for row in rows}), "tests": len({row["test"] for row in rows} - {None}),
            "tags": len({row["tag"] for row in tagged(rows)}),
        }  # fmt: skip
    of_tag = {tag: {row["head"] for row in rows} for tag, rows in grouped(tagged(KNOWN), "tag").items()}
    shared = {tag: ", ".join(map(str, sorted(h - {None}))) for tag, h in of_tag.items() if len(h - {None}) > 1}
    assert shared
    assert dict(distributions.shared_tags(LOG).iter_rows()) == shared
    missing = dict(distributions.columns(LOG).select("column", "missing").iter_rows())
    assert missing["correct"] == len(ROWS) - len(KNOWN)
    assert missing["test"] == sum(row["test"] is None for row in ROWS)
    assert missing["elapsed"] == 40


def test_accuracy_by_part_hour_month_and_end():
    for part, table in accuracy.by_part(LOG).items():
        assert counted(table, part) == expected(grouped(KNOWN, part))
    hours = [row | {"hour": row["s"] // 3600 % 24} for row in KNOWN]
    assert counted(accuracy.by_hour(LOG), "hour") == expected(grouped(hours, "hour"))
    months = [
        row | {"month": datetime.datetime.fromtimestamp(row["s"], datetime.UTC).strftime("%Y-%m")} for row in KNOWN
    ]
    table = accuracy.by_month(LOG)
    cells = Counter((row["month"], str(row["head"])) for row in months)
    for row in table.iter_rows(named=True):
        assert row["all"] == sum(each["month"] == row["month"] for each in months)
        heads = [name for name in row if name not in ("month", "all")]
        assert heads == [str(head) for head in sorted(grouped(KNOWN, "head"))]
        assert all(row[head] == cells[row["month"], head] for head in heads)
    assert table["month"].to_list() == sorted({row["month"] for row in months})
    ends = {row["answers"]: (row["n"], row["right"]) for row in accuracy.of_ends(LOG).iter_rows(named=True)}
    assert ends["all answers"] == (len(KNOWN), sum(row["correct"] for row in KNOWN))
    for name, keys in (("user", ["user"]), ("(user, head)", ["user", "head"]), ("(user, test)", ["user", "test"])):
        last = [rows[-1]["correct"] for rows in grouped(ROWS, *keys).values()]
        assert ends[f"last of a {name}"] == (sum(x is not None for x in last), sum(x or 0 for x in last))


def test_the_interval_is_wilsons():
    low, high = measures.wilson(np.array([0, 3, 10, 0]), np.array([5, 7, 10, 0]))
    for k, (right, n) in enumerate([(0, 5), (3, 7), (10, 10)]):
        exact = stats.binomtest(right, n).proportion_ci(method="wilson")
        assert (low[k], high[k]) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert (low[3], high[3]) == (0, 1)


def steps():
    """Consecutive rows of one user: (row, seconds since, tail difference where both are of one test)."""
    for before, row in pairwise(ROWS):
        if row["user"] == before["user"]:
            inside = row["test"] is not None and row["test"] == before["test"]
            known = inside and row["tail"] is not None and before["tail"] is not None
            yield row, row["s"] - before["s"], row["tail"] - before["tail"] if known else None


def test_pace_order_and_repeats():
    elapsed = [row | {"elapsed": seconds} for row, seconds, _ in steps() if row["correct"] is not None]
    groups = {key: rows for key, rows in grouped(elapsed, "elapsed").items() if len(rows) > 20}
    assert groups
    assert counted(accuracy.by_elapsed(LOG, 20), "elapsed") == expected(groups)
    bands = accuracy.by_elapsed_band(LOG)
    assert bands["n"].sum() == len(elapsed)
    assert dict(bands.select("seconds", "n").iter_rows())["11-20"] == sum(row["elapsed"] == 17 for row in elapsed)
    found = [(row["head"], step) for row, _, step in steps() if step is not None]
    assert dict(accuracy.order_in_tests(LOG).iter_rows()) == dict(Counter(step for _, step in found))
    violations = {row[0]: row[1:3] for row in accuracy.violations(LOG).iter_rows()}
    assert violations["all"] == (len(found), sum(step != 1 for _, step in found))
    for head in {head for head, _ in found}:
        of_head = [step for h, step in found if h == head]
        assert violations[str(head)] == (len(of_head), sum(step != 1 for step in of_head))
    met, numbered = Counter(), []
    for row in ROWS:
        met[row["user"], row["question"]] += 1
        numbered.append(row | {"attempt": met[row["user"], row["question"]]})
    known = [row for row in numbered if row["correct"] is not None]
    assert counted(accuracy.by_attempt(LOG, 3), "attempt") == expected(
        {key: rows for key, rows in grouped(known, "attempt").items() if key <= 3}
    )
    again = {"repeated" if key else "first attempt": value for key, value in expected(
        grouped([row | {"again": row["attempt"] > 1} for row in known], "again")).items()}  # fmt: skip
    assert counted(accuracy.repeats(LOG), "answer") == again


def feature_reference(rows) -> dict | None:
    """The 13 features of one user, as the reference's table says, and the last answer."""
    if len(rows) < 2:
        return None
    *past, last = rows
    known = [row["correct"] for row in past if row["correct"] is not None]
    cycles = {}
    for row in past:
        cycles.setdefault((row["s"] // DAY, row["test"]), []).append(row["s"])
    spans = [(times[0], times[-1]) for times in cycles.values()]
    between = [(b[0] - a[1]) / DAY for a, b in pairwise(spans)]
    tempo = [(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0 for times in cycles.values()]
    in_test = mean([row for row in past if row["test"] == last["test"]]) if last["test"] else None
    recent = [sum(known[-n:]) / len(known[-n:]) if known else None for n in (10, 30, 50, 100)]
    return dict(
        zip(
            aggregates.FEATURES,
            [
                *(
                    len(past),
                    sum(known),
                    sum(known) / len(known) if known else None,
                    len(cycles),
                    len(past) / len(cycles),
                ),
                *((past[-1]["s"] - past[0]["s"]) / DAY, sum(between) / len(between) if between else 0.0, *recent),
                *(in_test, sum(tempo) / len(tempo)),
            ],
            strict=True,
        )
    ) | {"last": last["correct"]}


def test_the_thirteen_features_are_those_of_the_reference_and_never_see_the_last_answer():
    table = aggregates.features(LOG)
    reference = [each for rows in grouped(ROWS, "user").values() if (each := feature_reference(rows)) is not None]
    assert len(table) == len(reference)
    assert len(aggregates.FEATURES) == 13
    for found, wanted in zip(table.drop("user").iter_rows(named=True), reference, strict=True):
        assert {k: v is None for k, v in found.items()} == {k: v is None for k, v in wanted.items()}
        known = [name for name, value in wanted.items() if value is not None]
        assert [found[name] for name in known] == pytest.approx([wanted[name] for name in known], abs=1e-9)
    changed = HISTORIES.correct.copy()
    changed[HISTORIES.offsets[1:] - 1] = 1 - np.abs(changed[HISTORIES.offsets[1:] - 1])
    other = aggregates.features(interactions(replace(HISTORIES, correct=changed)))
    assert other.drop("last").equals(table.drop("last"))
    assert not other["last"].equals(table["last"])


def test_correlations_and_their_intervals():
    table = aggregates.features(LOG)
    found = {row["feature"]: row for row in aggregates.correlations(table).iter_rows(named=True)}
    for name in aggregates.FEATURES:
        pairs = table.select(name, "last").drop_nulls().to_numpy().astype(float)
        exact = stats.pearsonr(*pairs.T)
        interval = exact.confidence_interval(0.95)
        row = found[name]
        assert row["last_n"] == len(pairs)
        wanted = (exact.statistic, interval.low, interval.high)
        assert (row["last_r"], row["last_low"], row["last_high"]) == pytest.approx(wanted, abs=1e-9)
    assert found["accuracy"]["accuracy_r"] is None
    assert measures.pearson([1.0, 1.0, 1.0], [0.0, 1.0, 0.0]) == (3, None, None, None)


def pairs_reference(rows):
    right, wrong = defaultdict(set), defaultdict(set)
    for row in tagged(rows):
        (right if row["correct"] else wrong)[row["tag"]].add(row["user"])
    tags = sorted({*right, *wrong})
    tried = {tag: right[tag] | wrong[tag] for tag in tags}
    for a in tags:
        for b in tags:
            if a != b and tried[a] & tried[b]:
                mixed = right[a] & wrong[a] & right[b] & wrong[b]
                counts = (tried[a] & tried[b], right[a] & tried[b], right[a] & right[b], tried[a] & right[b], mixed)
                yield (a, b, *map(len, counts))


COUNTS = ("a", "b", "tried", "support", "both", "right_b", "joint")


def test_the_prerequisite_matrix_is_directed_and_equals_sets_of_users():
    found = prerequisites.named(prerequisites.pairs(LOG.tagged("user"), len(LOG.users), len(LOG.concepts)), LOG)
    assert list(found.select(COUNTS).iter_rows()) == list(pairs_reference(KNOWN))
    for row in found.iter_rows(named=True):
        assert row["r"] == (row["both"] / row["support"] if row["support"] else None)
        assert row["base"] == row["right_b"] / row["tried"]
        assert row["joint_share"] == row["joint"] / row["tried"]
    r = {(row["a"], row["b"]): row["r"] for row in found.iter_rows(named=True)}
    assert any(r[a, b] != r[b, a] for a, b in r)
    per_head = prerequisites.named(prerequisites.per_head(LOG), LOG)
    for head, rows in grouped(KNOWN, "head").items():
        part = per_head.filter(pl.col("head") == head)
        assert list(part.select(COUNTS).iter_rows()) == list(pairs_reference(rows))


def planted(users: int = 60):
    """Concept 0 is hard, 1 is easy; whoever masters 0 masters 1."""
    rows = [(u, tag, int(u < 20 if tag == 0 else u < 55)) for u in range(users) for tag in (0, 1)]
    return pl.DataFrame(rows, {"user": pl.Int32, "tag": pl.Int32, "correct": pl.Int8}, orient="row")


def test_a_planted_prerequisite_is_the_strongest_pair():
    found = prerequisites.pairs(planted(), 60, 2)
    (row,) = prerequisites.asymmetric(found, 10, 5).iter_rows(named=True)
    assert (row["a"], row["b"], row["r"], row["r_back"]) == (0, 1, 1.0, 20 / 55)
    assert row["gap"] == row["low"] - row["high_back"] > 0
    assert len(prerequisites.asymmetric(found, 21, 5)) == 0  # too few users
    matrix = prerequisites.dense(found, "r", [1, 0], 10)
    assert matrix.tolist() == [[-1, 36], [100, -1]]
    assert prerequisites.dense(found, "r", [1, 0], 21).tolist() == [[-1, 36], [-1, -1]]


def test_exposure():
    units = distributions.units(LOG)
    table = {(row["unit"], row["way"]): row for row in exposure.correlations(units).iter_rows(named=True)}
    assert len(table) == 9
    for unit, rows in (("user", KNOWN), ("test", KNOWN), ("tag", tagged(KNOWN))):
        points = [(len(each), mean(each)) for each in grouped(rows, unit).values()]
        assert table[unit, "raw"]["r"] == pytest.approx(stats.pearsonr(*zip(*points, strict=True)).statistic)
        of_count = defaultdict(list)
        for n, share in points:
            of_count[n].append(share)
        way = exposure.ways(units[unit], 4)["per count"]
        wanted = [(n, pytest.approx(statistics.fmean(of_count[n])), len(of_count[n])) for n in sorted(of_count)]
        assert list(way.iter_rows()) == wanted
        width = (max(of_count) - min(of_count)) / 4
        cells = Counter(min(int((n - min(of_count)) / width), 3) for n, _ in points)
        assert exposure.ways(units[unit], 4)["binned"]["units"].to_list() == [cells[cell] for cell in sorted(cells)]
    slope, intercept = measures.line([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    assert (slope, intercept) == pytest.approx((2, 1))
    split = exposure.split_at_mean(units).filter(pl.col("unit") == "user")
    average = len(KNOWN) / len(grouped(KNOWN, "user"))
    assert split.filter(pl.col("group") == "above the mean")["n"].sum() == sum(
        len(rows) > average for rows in grouped(KNOWN, "user").values()
    )


def test_learning_curves():
    users = curves.median_users(LOG, 3)
    sizes = {user: len(rows) for user, rows in grouped(KNOWN, "user").items()}
    middle = statistics.median(sizes.values())
    names = sorted(sizes)
    assert [LOG.users[user] for user in users] == sorted(names, key=lambda user: (abs(sizes[user] - middle), user))[:3]
    heavy = curves.heaviest_users(LOG, 3)
    assert [LOG.users[user] for user in heavy] == sorted(names, key=lambda user: (-sizes[user], user))[:3]
    answers = {user: [row["correct"] for row in rows] for user, rows in grouped(KNOWN, "user").items()}
    for user, number, share in curves.cumulative(LOG, users).iter_rows():
        assert share == sum(answers[user][:number]) / number
    longest = random_histories(np.random.default_rng(3), 2, longest=200)
    table = curves.windowed(interactions(longest), [0, 1])
    known = [row for row in plain(longest) if row["correct"] is not None]
    answers = {user: [row["correct"] for row in rows] for user, rows in grouped(known, "user").items()}
    assert set(table["window"]) >= {30, 70}
    assert len(table) == sum(max(len(a) - w + 1, 0) for a in answers.values() for w in curves.WINDOWS)
    for user, window, number, share in table.iter_rows():
        assert share == pytest.approx(sum(answers[user][number - window : number]) / window, abs=1e-15)
    bands = [row | {"from": 2 ** int(math.log2(row["position"] + 1)) - 1} for row in KNOWN]
    assert counted(curves.by_position(LOG), "from") == expected(grouped(bands, "from"))
    met, practised = Counter(), []
    for row in tagged(ROWS):
        practised.append(row | {"earlier": met[row["user"], row["tag"]]})
        met[row["user"], row["tag"]] += 1
    known = [row for row in practised if row["correct"] is not None and row["earlier"] <= 5]
    assert counted(curves.by_practice(LOG, 5), "earlier") == expected(grouped(known, "earlier"))


def test_months_of_a_user():
    found = curves.months_of_a_user(LOG, 0)
    rows = [row for row in ROWS if row["user"] == LOG.users[0] and row["test"] is not None]
    assert found["answers"].sum() == len(rows)
    assert " ".join(found["names"]).split()[0] == rows[0]["test"]


def vault():
    histories = random_histories(np.random.default_rng(6), 15, questions=24)
    return histories, interactions(histories)


def test_drift_compares_groups_and_never_reads_an_answer_of_the_vault():
    histories, hidden = vault()
    groups = drift.groups(LOG, hidden)
    assert list(groups) == [drift.TRAINING, drift.OPEN, drift.VAULT]
    asked = {row["user"] for row in ROWS if row["correct"] is None}
    split = {
        drift.TRAINING: [r for r in ROWS if r["user"] not in asked],
        drift.OPEN: [r for r in ROWS if r["user"] in asked],
    }
    split[drift.VAULT] = plain(histories)
    overview = {row["group"]: row for row in drift.overview(LOG, hidden).iter_rows(named=True)}
    met = {row["question"] for row in ROWS}
    for name, rows in split.items():
        assert (overview[name]["users"], overview[name]["rows"]) == (len(grouped(rows, "user")), len(rows))
        assert overview[name]["unseen_questions"] == pytest.approx(
            sum(r["question"] not in met for r in rows) / len(rows)
        )
        assert overview[name]["accuracy"] == (None if name == drift.VAULT else pytest.approx(mean(rows)))
    table = {(row["quantity"], row["group"]): row for row in drift.distances(groups).iter_rows(named=True)}
    sizes = {name: [len(each) for each in grouped(rows, "user").values()] for name, rows in split.items()}
    for name in (drift.OPEN, drift.VAULT):
        distance = stats.ks_2samp(sizes[drift.TRAINING], sizes[name]).statistic
        assert table["rows per user", name]["value"] == pytest.approx(distance)
    assert ("accuracy per user", drift.OPEN) in table
    assert ("accuracy per user", drift.VAULT) not in table
    flipped = interactions(replace(histories, correct=np.abs(1 - np.abs(histories.correct)).astype(np.int8)))
    assert drift.distances(drift.groups(LOG, flipped)).equals(drift.distances(groups))
    assert drift.overview(LOG, flipped).equals(drift.overview(LOG, hidden))
    counts = drift.shares(groups)["hour"]
    for name, rows in split.items():
        wanted = Counter(row["s"] // 3600 % 24 for row in rows)
        assert {value: n for value, n in counts.select("value", name).iter_rows() if n} == dict(wanted)


def test_the_stability_index():
    p, q = np.array([30, 70]), np.array([50, 50])
    assert measures.stability(p, q) == pytest.approx((0.3 - 0.5) * math.log(0.3 / 0.5) + 0.2 * math.log(0.7 / 0.5))
    assert measures.stability(p, p) == 0
    assert measures.stability(p, np.zeros(2, int)) is None
    assert measures.kolmogorov(pl.Series([1, 2]), pl.Series([], dtype=pl.Int64)) is None


def test_label_balance_of_loaders():
    found = {row["loader"]: (row["n"], row["right"]) for row in drift.label_balance(LOG, 7, 0).iter_rows(named=True)}
    size = {user: len(rows) for user, rows in grouped(ROWS, "user").items()}
    ends = [r for r in KNOWN if (r["position"] + 1) % 7 == 0 or r["position"] == size[r["user"]] - 1]
    assert found["last row of each window of 7"] == (len(ends), sum(row["correct"] for row in ends))
    asked = {row["user"] for row in ROWS if row["correct"] is None}
    last = [rows[-1]["correct"] for user, rows in grouped(KNOWN, "user").items() if user in asked]
    assert found["last visible row before a hidden one"] == (len(last), sum(last))
    users = len(grouped(KNOWN, "user"))
    assert found["end of a random window, 1 epoch"][0] == users
    assert found["end of a random window, 10 epochs"][0] == 10 * users
    many = interactions(random_histories(np.random.default_rng(1), 3000, longest=8))
    shown = {row["loader"]: row["accuracy"] for row in drift.label_balance(many, 7, 0).iter_rows(named=True)}
    assert shown["end of a random window, 10 epochs"] == pytest.approx(0.5, abs=0.03)


def test_accuracy_of_user_and_head_groups():
    table = drift.head_accuracy(LOG, 1000, 0)  # wider than any history: a window is all that came before its end
    asked = {row["user"] for row in ROWS if row["correct"] is None}
    for head, rows in grouped(KNOWN, "head").items():
        for source, inside in ((drift.TRAINING, False), (drift.OPEN, True)):
            chosen = [mean(each) for user, each in grouped(rows, "user").items() if (user in asked) == inside]
            (row,) = table.filter((pl.col("head") == head) & (pl.col("source") == source)).iter_rows(named=True)
            assert row["n"] == len(chosen)
            assert row["mean"] == pytest.approx(statistics.fmean(chosen))
            assert row["50%"] == pytest.approx(statistics.median(chosen))
    windows = table.filter(pl.col("source").str.contains("10 epochs"))
    assert windows["n"].sum() == 10 * len(grouped(KNOWN, "user", "head"))


def test_difficulty_of_what_is_asked_for():
    table = drift.target_difficulty(LOG)
    asked = {row["question"] for row in ROWS if row["correct"] is None}
    rates = {key: mean(rows) for key, rows in grouped(KNOWN, "question").items()}
    for name, wanted in (("all", rates.values()), ("asked for", [rates[key] for key in rates if key in asked])):
        part = table.filter((pl.col("unit") == "question") & (pl.col("set") == name))
        assert part["n"].sum() == len(wanted)
        assert part["mean"][0] == pytest.approx(statistics.fmean(wanted))
