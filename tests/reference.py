"""Every numeric feature once more, slowly: plain Python over lists of rows, to be read beside docs/features.md.

A row is a dict: place (0 is the student's first), question, test, concepts (list), head and tail ("" where the id has
none), correct (1, 0 or -1), time (ms, None where the row may not know it), and `item`, its question's fitted values.
"""

from __future__ import annotations

import math
from collections import defaultdict
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

Row = dict[str, Any]

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
WINDOWS = {"10min": 10 * MINUTE, "hour": HOUR, "day": DAY, "week": 7 * DAY, "month": 30 * DAY}


def features(row: Row, past: list[Row], rate: float, submitted: bool) -> dict[str, float]:
    """All features of a row.

    Args:
        past: the rows that it may see, oldest first.
        rate: overall rate of right answers.
        submitted: timestamps are those of submission (else of showing).
    """
    now = max((each["time"] for each in (*past[-1:], row) if each["time"] is not None), default=None)
    slow = _Slow(row, past, rate, submitted, now)
    parts = (
        slow.fitted(), slow.records(), slow.distances(), slow.recent(), slow.windows(), slow.times(), slow.sessions(),
        slow.passes(), slow.aggregates(), slow.repeats(), slow.elo(), slow.similar(),
    )  # fmt: skip
    return {name: value for part in parts for name, value in part.items()}


def visible(rows: list[Row], place: int, bundled: bool) -> list[Row]:
    """The rows before rows[place] that it may see: with bundles, not those of its own run of one test."""
    stop = place
    while bundled and stop > 0 and rows[stop - 1]["test"] == rows[place]["test"] != "":
        stop -= 1
    return rows[:stop]


def graded(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["correct"] != -1]


def right(rows: list[Row]) -> int:
    return sum(row["correct"] for row in graded(rows))


def surplus(rows: list[Row]) -> float:
    """Mean of answer minus expected rate, shrunk towards 0 by two answers."""
    return sum(row["correct"] - row["item"]["expected"] for row in graded(rows)) / (len(graded(rows)) + 2)


def log_seconds(ms: float | None) -> float:
    return -1.0 if ms is None else math.log(1 + max(ms, 0) / SECOND)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def gaps(rows: list[Row]) -> list[float]:
    """Times between rows that follow each other."""
    return [after["time"] - before["time"] for before, after in pairwise(rows)]


class _Slow:
    def __init__(self, row: Row, past: list[Row], rate: float, submitted: bool, now: float | None) -> None:
        self.row, self.past, self.rate, self.submitted, self.now = row, past, rate, submitted, now
        self.test = [earlier for earlier in past if earlier["test"] == row["test"]]
        self.head = [earlier for earlier in past if earlier["head"] == row["head"] != ""]
        self.question = [earlier for earlier in past if earlier["question"] == row["question"]]
        self.position = [earlier for earlier in past if earlier["tail"] == row["tail"] != ""]
        # the rows of each of the question's concepts; a row on two of them stands in both lists
        self.by_concept = [[each for each in past if tag in each["concepts"]] for tag in row["concepts"]]
        self.concept = sorted((each for rows in self.by_concept for each in rows), key=lambda each: each["place"])

    def odds(self, rows: list[Row]) -> float:
        return self.smoothed(right(rows), len(graded(rows)))

    def smoothed(self, right: float, graded: float) -> float:
        return math.log((right + 2 * self.rate) / (graded - right + 2 * (1 - self.rate)))

    def fitted(self) -> dict[str, float]:
        item = self.row["item"]
        levels = ("question", "test", "concept", "head", "position")
        return {
            **{f"{level}_log_odds": item[f"{level}_log_odds"] for level in levels},
            "question_count": math.log(1 + item["question_graded"]),
            "question_right": math.log(1 + item["question_right"]),
            "test_graded": math.log(1 + item["test_graded"]),
            "test_right": math.log(1 + item["test_right"]),
            "concept_graded": math.log(1 + item["concept_graded"]),
            "concept_right": math.log(1 + item["concept_right"]),
            "test_size": item["test_size"],
            "question_number": int(self.row["tail"]) if self.row["tail"] else -1,
            "expected_time": log_seconds(item["expected_ms"]),
            "easiness_1pl": item["easiness"],
            "easiness_2pl": item["easiness_2pl"],
            "discrimination": item["discrimination"],
        }

    def records(self) -> dict[str, float]:
        levels = {
            "user": self.past,
            "user_concept": self.concept,
            "user_question": self.question,
            "user_test": self.test,
            "user_head": self.head,
            "user_position": self.position,
        }
        found = {}
        for level, rows in levels.items():
            found[f"{level}_count"] = math.log(1 + len(rows))
            found[f"{level}_log_odds"] = self.odds(rows)
            found[f"{level}_surplus"] = surplus(rows)
        for level in ("user", "user_test", "user_head", "user_concept"):
            found[f"{level}_right"] = math.log(1 + right(levels[level]))
        wrong = [row for row in self.concept if row["correct"] == 0]
        return found | {"user_concept_wrong": math.log(1 + len(wrong))}

    def distances(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for level in ("test", "head", "question", "concept"):
            rows = getattr(self, level)
            last = rows[-1] if rows else None
            between = len(self.past) - 1 - last["place"] if last else 0
            found[f"{level}_rows_ago"] = math.log(1 + between) if last else -1
            found[f"{level}_time_ago"] = log_seconds(self.now - last["time"] if last else None)
            found[f"{level}_last_answer"] = last["correct"] if last else -2
        ago = self.now - self.test[-1]["time"] if self.test else None
        found["test_time_ago_capped"] = -1 if ago is None else min(max(ago, 0) / SECOND, 600)
        between_same = [gap for rows in self.by_concept for gap in gaps(rows)]
        return found | {"concept_spacing": log_seconds(mean(between_same) if between_same else None)}

    def recent(self) -> dict[str, float]:
        found = {f"recent_{n}_log_odds": self.odds(self.past[-n:]) for n in (5, 10, 20, 30, 50, 100)}
        found |= {f"recent_{n}_surplus": surplus(self.past[-n:]) for n in (20, 50, 100)}
        found |= {f"head_recent_{n}_log_odds": self.odds(self.head[-n:]) for n in (10, 30, 50, 100)}
        found["concept_recent_5_log_odds"] = self.odds([row for rows in self.by_concept for row in rows[-5:]])
        found["fading_log_odds"] = self.faded([self.past])
        found["concept_fading_log_odds"] = self.faded(self.by_concept)
        answers = [row["correct"] for row in graded(self.past)]
        alike = 0
        while alike < len(answers) and answers[-1 - alike] == answers[-1]:
            alike += 1
        found["run"] = alike if answers and answers[-1] == 1 else -alike
        digits = [row["correct"] + 1 for row in self.past[-4:]]  # hidden 0, wrong 1, right 2
        found["last_4"] = int("".join(map(str, digits)) or "0", 3)
        return found

    def faded(self, lists: list[list[Row]]) -> float:
        weights, successes = 0.0, 0.0
        for rows in lists:
            for age, row in enumerate(reversed(graded(rows))):
                weights += 0.9**age
                successes += 0.9**age * row["correct"]
        return self.smoothed(successes, weights)

    def windows(self) -> dict[str, float]:
        found = {}
        for prefix, past in (("", self.past), ("concept_", self.concept)):
            for name, length in WINDOWS.items():
                rows = [row for row in past if row["time"] > self.now - length]
                found[f"{prefix}{name}_count"] = math.log(1 + len(rows))
                found[f"{prefix}{name}_log_odds"] = self.odds(rows)
        return {name: value for name, value in found.items() if not name.startswith("concept_10min")}

    def times(self) -> dict[str, float]:
        elapsed: list[float | None] = [None, None, None, *(max(gap, 0) for gap in gaps(self.past))]
        lag = max(self.row["time"] - self.past[-1]["time"], 0) if self.past and self.row["time"] is not None else None
        ratios = []
        for before, after in pairwise(self.past):
            spent = after["time"] - before["time"]
            on = after if self.submitted else before
            if 0 <= spent <= 10 * MINUTE:
                ratios.append(log_seconds(spent) - log_seconds(on["item"]["expected_ms"]))
        clock = None if self.now is None else datetime.fromtimestamp(self.now / SECOND, UTC)
        angle = 0.0 if clock is None else 2 * math.pi * (self.now % DAY) / DAY
        return {
            "lag_log": log_seconds(lag),
            "lag_capped": -1 if lag is None else min(lag / SECOND, 600),
            "previous_elapsed_log": log_seconds(elapsed[-1]),
            "previous_elapsed_capped": -1 if elapsed[-1] is None else min(elapsed[-1] / SECOND, 600),
            "elapsed_2_log": log_seconds(elapsed[-2]),
            "elapsed_3_log": log_seconds(elapsed[-3]),
            "tempo": sum(ratios) / (len(ratios) + 2),
            "last_tempo": ratios[-1] if ratios else 0,
            "hour_sin": 0 if clock is None else math.sin(angle),
            "hour_cos": 0 if clock is None else math.cos(angle),
            "weekend": 0 if clock is None else clock.weekday() >= 5,
        }

    def sessions(self) -> dict[str, float]:
        """Sessions end with a pause of more than 30 minutes, also one that lasts until the row itself."""
        sessions: list[list[Row]] = []
        for index, row in enumerate(self.past):
            if index == 0 or row["time"] - self.past[index - 1]["time"] > 30 * MINUTE:
                sessions.append([])
            sessions[-1].append(row)
        running = sessions[-1] if sessions else []
        if running and self.now - running[-1]["time"] > 30 * MINUTE:
            running = []
        return {
            "sessions": math.log(1 + len(sessions)),
            "session_count": math.log(1 + len(running)),
            "session_log_odds": self.odds(running),
            "session_time": log_seconds(self.now - running[0]["time"] if running else 0),
        }

    def passes(self) -> dict[str, float]:
        """Every `test_size` rows of a test are a pass, whatever the questions."""
        size = int(self.row["item"]["test_size"])
        full = len(self.test) // size if size else 0
        running = self.test[full * size :]
        return {
            "pass_number": full,
            "pass_place": len(running),
            "pass_right": right(running),
            "pass_log_odds": self.odds(running),
        }

    def aggregates(self) -> dict[str, float]:
        found = {}
        for level, rows in (("user", self.past), ("user_head", self.head)):
            cycles: dict[Any, list[Row]] = defaultdict(list)
            between = []
            for index, row in enumerate(rows):
                key = (datetime.fromtimestamp(row["time"] / SECOND, UTC).date(), row["test"])
                if key not in cycles and index:
                    between.append(row["time"] - rows[index - 1]["time"])
                cycles[key].append(row)
            found[f"{level}_cycles"] = math.log(1 + len(cycles))
            found[f"{level}_rows_per_cycle"] = len(rows) / len(cycles) if cycles else 0
            found[f"{level}_span_days"] = (rows[-1]["time"] - rows[0]["time"]) / DAY if rows else 0
            found[f"{level}_cycle_interval"] = log_seconds(mean(between))
            found[f"{level}_cycle_gap"] = log_seconds(mean([mean(gaps(cycle)) for cycle in cycles.values()]))
        today = [row for row in self.test if row["time"] // DAY == self.now // DAY]
        return found | {
            "day_cycle_count": math.log(1 + len(today)),
            "day_cycle_right": math.log(1 + right(today)),
            "day_cycle_log_odds": self.odds(today),
            **{f"day_cycle_recent_{n}_log_odds": self.odds(today[-n:]) for n in (10, 30, 50, 100)},
            "day_cycle_gap": log_seconds(mean(gaps(today))),
            "day_cycle_time": log_seconds(today[-1]["time"] - today[0]["time"] if today else 0),
        }

    def repeats(self) -> dict[str, float]:
        """A row is repeated by the next one to the same question; `far` is how many rows lie from one to the other."""
        last: dict[str, Row] = {}
        alike: list[bool] = []
        far: list[int] = []
        for row in [*self.past, self.row | {"place": len(self.past), "correct": -1}]:
            before = last.get(row["question"])
            far.append(row["place"] - before["place"] if before else 0)
            if before and row["correct"] != -1 != before["correct"]:
                alike.append(row["correct"] == before["correct"])
            last[row["question"]] = row
        streak = next((n for n, same in enumerate(reversed(alike)) if not same), len(alike))
        ordered = next((n for n, each in enumerate(reversed(far)) if each != far[-1]), len(far)) - 1 if far[-1] else 0
        answer = self.question[-1]["correct"] if self.question else -1
        sign = {1: 1, 0: -1, -1: 0}[answer]
        return {
            "repeat_count": math.log(1 + len(alike)),
            "repeat_rate": mean([float(same) for same in alike]),
            "repeat_recent_rate": mean([float(same) for same in alike[-10:]]),
            "repeat_streak": math.log(1 + streak),
            "repeat_vote": sign * math.log(1 + streak),
            "replay_rows": math.log(1 + ordered),
            "replay_vote": sign * math.log(1 + ordered),
        }

    def elo(self) -> dict[str, float]:
        user = 0.0
        rating: dict[str, float] = defaultdict(float)
        moved: dict[str, int] = defaultdict(int)
        for moves, row in enumerate(graded(self.past)):
            logit = user + mean([rating[tag] for tag in row["concepts"]]) + row["item"]["easiness"]
            surprise = row["correct"] - 1 / (1 + math.exp(-logit))
            user += 0.4 / (1 + 0.05 * moves) * surprise
            for tag in row["concepts"]:
                rating[tag] += 0.4 / (1 + 0.05 * moved[tag]) * surprise
                moved[tag] += 1
        concept = mean([rating[tag] for tag in self.row["concepts"]])
        logit = user + concept + self.row["item"]["easiness"]
        return {"elo_user": user, "elo_concept": concept, "elo_logit": logit}

    def similar(self) -> dict[str, float]:
        """The likeness of two questions is the product of their sketches."""
        answered = graded(self.past)
        mine = self.row["item"]["sketch"]
        likeness = [sum(a * b for a, b in zip(mine, row["item"]["sketch"], strict=True)) for row in answered]
        record = [
            like * (row["correct"] - row["item"]["expected"]) for like, row in zip(likeness, answered, strict=True)
        ]
        weight = len(answered) + 2
        return {"similar_surplus": sum(record) / weight, "similar_share": sum(likeness) / weight}
