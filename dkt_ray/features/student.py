"""The numeric features: one table, a line each, of what is computed from which quantities of a row's visible past.

A `Feature` names a function of `Function` and the quantities (features/quantities.py) that it reads; features/plan.py
evaluates the chosen ones for all rows at once. docs/features.md is generated from this table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from dkt_ray.features import kernels
from dkt_ray.features.quantities import needs

PRIOR: Final = 2.0  # pseudo-answers that a student's own rates start from

# quantities that right answers raise
SUCCESS: Final = ("right", "surplus", "fading", "last_answer", "run", "ngram", "replay_vote")


class Function(IntEnum):
    """What a feature does with its inputs a and b."""

    VALUE = kernels.VALUE  # a
    LOG_COUNT = kernels.LOG_COUNT  # log(1 + a)
    LOG_WRONG = kernels.LOG_WRONG  # log(1 + b - a): wrong answers from right and graded ones
    LOG_ODDS = kernels.LOG_ODDS  # log((a + 2 r) / (b - a + 2 (1 - r))), r the overall rate: smoothed by PRIOR answers
    RATE = kernels.RATE  # a / b, 0 where b is 0
    MEAN = kernels.MEAN  # a / (b + 2): a mean, shrunk towards 0 by PRIOR answers
    SURPLUS = kernels.SURPLUS  # a / 1e6 / (b + 2): the same of a sum in fixed point
    LOG_MS = kernels.LOG_MS  # log(1 + a / 1000): seconds from ms, -1 where unknown
    CAPPED = kernels.CAPPED  # seconds from ms, 600 at most, -1 where unknown
    SINCE_ROWS = kernels.SINCE_ROWS  # log(1 + rows between row a and row b), -1 where there is no row a
    SINCE_MS = kernels.SINCE_MS  # log(1 + seconds from time a to time b), -1 where there is none
    LOG_MEAN_MS = kernels.LOG_MEAN_MS  # log(1 + a / b / 1000): mean seconds from ms in all, -1 where b is 0
    DAYS = kernels.DAYS  # days from ms
    SINCE_CAPPED = kernels.SINCE_CAPPED  # seconds from time a to time b, 600 at most, -1 where there is none


FORMULAS: Final = {
    Function.VALUE: "a",
    Function.LOG_COUNT: "log(1 + a)",
    Function.LOG_WRONG: "log(1 + b − a)",
    Function.LOG_ODDS: "log((a + 2r) / (b − a + 2(1 − r)))",
    Function.RATE: "a / b (0 where b = 0)",
    Function.MEAN: "a / (b + 2)",
    Function.SURPLUS: "a / 1,000,000 / (b + 2)",
    Function.CAPPED: "min(a / 1000, 600), −1 unknown",
    Function.LOG_MS: "log(1 + a / 1000), −1 unknown",
    Function.SINCE_ROWS: "log(1 + b − 1 − a): rows between place a and place b, −1 never",
    Function.SINCE_MS: "log(1 + (b − a) / 1000), −1 never",
    Function.LOG_MEAN_MS: "log(1 + a / b / 1000), −1 where b = 0",
    Function.DAYS: "a / 86,400,000",
    Function.SINCE_CAPPED: "min((b − a) / 1000, 600), −1 never",
}


class Feature(NamedTuple):
    """One numeric column."""

    name: str
    group: str  # switched on and off together, by `encoder.features`
    function: Function
    inputs: tuple[str, ...]  # quantities, see features/quantities.py
    doc: str
    version: int = 1  # counts up when the same name comes to mean another number: older states and bundles are refused

    @property
    def needs(self) -> frozenset[str]:
        """What the data must have: some of DATA."""
        return frozenset().union(*(needs(quantity) for quantity in self.inputs))

    @property
    def direction(self) -> int:
        """Where a better record of the student moves it: 1 up, -1 down, 0 nowhere, or with no fixed sign.

        1 never falls and -1 never rises where the last visible answer is right instead of wrong.
        """
        source, _, column = self.inputs[0].partition(".")
        if source in ("item", "row") or not (source == "elo" or column.endswith(SUCCESS)):
            return 0
        return -1 if self.function is Function.LOG_WRONG else 1


VALUE, LOG_COUNT, LOG_WRONG, LOG_ODDS, RATE, MEAN, SURPLUS, LOG_MS, CAPPED, *_REST = Function
SINCE_ROWS, SINCE_MS, LOG_MEAN_MS, DAYS, SINCE_CAPPED = _REST

CORE: Final = "core"  # the group that is always on: baselines, mastery and every model build on it


def _line(name: str, group: str, function: Function, inputs: str, doc: str, version: int = 1) -> Feature:
    return Feature(name, group, function, tuple(inputs.split()), doc, version)


def _difficulty(level: str, group: str, of: str) -> Feature:
    doc = f"log-odds of a right answer {of} (training users)"
    return _line(f"{level}_log_odds", group, VALUE, f"item.{level}_log_odds", doc)


def _record(key: str, group: str, of: str) -> list[Feature]:
    """Rows, smoothed log-odds and surplus of the student under one key."""
    name = "user" if key == "user" else f"user_{key}"
    odds, surplus = f"smoothed log-odds of the student's answers {of}", f"mean of answer minus expected rate {of}"
    return [
        _line(f"{name}_count", group, LOG_COUNT, f"{key}.seen", f"log(1 + visible rows {of})"),
        _line(f"{name}_log_odds", group, LOG_ODDS, f"{key}.right {key}.graded", odds),
        _line(f"{name}_surplus", group, SURPLUS, f"{key}.surplus {key}.graded", surplus),
    ]


def _recent(key: str, rows: int, group: str, surplus: bool = False) -> list[Feature]:
    """The last rows of the student, or of the student under a key."""
    name = f"recent_{rows}" if key == "user" else f"{key}_recent_{rows}"
    of = f"of the last {rows} visible answers"
    of += {"user": "", "concept": " on each of its concepts"}.get(key, f" of the same {key}")
    inputs = f"{key}.recent_{rows}_{{}} {key}.recent_{rows}_graded"
    odds = _line(f"{name}_log_odds", group, LOG_ODDS, inputs.format("right"), f"smoothed log-odds {of}")
    doc = f"mean of answer minus expected rate {of}"
    return [odds, *([_line(f"{name}_surplus", group, SURPLUS, inputs.format("surplus"), doc)] if surplus else [])]


def _window(key: str, window: str) -> list[Feature]:
    """The rows of a span of time, of the student or of the student on the question's concepts."""
    name = window if key == "user" else f"{key}_{window}"
    what = "answers" if key == "user" else "answers on the question's concepts"
    of = f"{what} in the last {'ten minutes' if window == '10min' else window}"
    inputs = f"{key}.{window}_right {key}.{window}_graded"
    return [
        _line(f"{name}_count", "windows", LOG_COUNT, f"{key}.{window}_seen", f"log(1 + {of})"),
        _line(f"{name}_log_odds", "windows", LOG_ODDS, inputs, f"smoothed log-odds of the {of}"),
    ]


def _distance(key: str, group: str, of: str) -> list[Feature]:
    """How long ago the key was met last, in rows and in time, and what became of it."""
    rows, seconds = f"log(1 + rows since the last one {of}), -1 never", f"log(1 + seconds since then {of}), -1 never"
    last = f"the last answer {of}: 1, 0, -1 hidden, -2 none"
    return [
        _line(f"{key}_rows_ago", group, SINCE_ROWS, f"{key}.last row.visible", rows),
        _line(f"{key}_time_ago", group, SINCE_MS, f"{key}.last_ms row.now", seconds),
        _line(f"{key}_last_answer", group, VALUE, f"{key}.last_answer", last),
    ]


def _aggregates(level: str, key: str, of: str) -> list[Feature]:
    """The reference's aggregates over the day cycles of the student, or of the student in a head."""
    cycles = "day" if key == "user" else f"{key}_day"
    interval = f"log(1 + mean seconds from the row before a cycle to its first row) {of}"
    gap = f"log(1 + mean over cycles of the mean seconds between their rows) {of}"
    span = f"days from the first to the last visible row {of}"
    return [
        _line(f"{level}_cycles", "aggregate", LOG_COUNT, f"{cycles}.cycles", f"log(1 + cycles) {of}"),
        _line(f"{level}_rows_per_cycle", "aggregate", RATE, f"{key}.seen {cycles}.cycles", f"rows per cycle {of}"),
        _line(f"{level}_span_days", "aggregate", DAYS, f"{key}.span_ms", span),
        _line(f"{level}_cycle_interval", "aggregate", LOG_MS, f"{cycles}.interval", interval),
        _line(f"{level}_cycle_gap", "aggregate", LOG_MS, f"{cycles}.gap", gap),
    ]


def _recent_in_cycle(*numbers: int) -> list[Feature]:
    """The last rows of today's cycle of the test."""
    return [
        _line(
            f"day_cycle_recent_{n}_log_odds", "aggregate", LOG_ODDS, f"day_recent.{n}_right day_recent.{n}_graded",
            f"smoothed log-odds of the last {n} visible answers of that cycle",
        )
        for n in numbers
    ]  # fmt: skip


FEATURES: Final = (
    _difficulty("question", CORE, "to the question"),
    _difficulty("concept", CORE, "to the question's concepts"),
    _line(
        "question_count", CORE, LOG_COUNT, "item.question_graded",
        "log(1 + training users' answers to the question)",
    ),
    *_record("user", CORE, "so far"),
    *_recent("user", 5, CORE),
    *_recent("user", 20, CORE, surplus=True),
    *_record("concept", CORE, "on the question's concepts"),
    *_record("question", CORE, "to the same question"),
    # the target question: how hard, what kind
    _difficulty("test", "difficulty", "in the question's test"),
    _difficulty("head", "difficulty", "in the question's head"),
    _difficulty("position", "difficulty", "at the question's number in its test"),
    _line("question_right", "difficulty", LOG_COUNT, "item.question_right", "log(1 + right answers to it)"),
    _line("test_graded", "difficulty", LOG_COUNT, "item.test_graded", "log(1 + answers in its test)"),
    _line("test_right", "difficulty", LOG_COUNT, "item.test_right", "log(1 + right answers in its test)"),
    _line("concept_graded", "difficulty", LOG_COUNT, "item.concept_graded", "log(1 + answers on its concepts)"),
    _line("concept_right", "difficulty", LOG_COUNT, "item.concept_right", "log(1 + right answers on them)"),
    _line("test_size", "difficulty", VALUE, "item.test_size", "known questions of its test, 0 of an unknown one", 2),
    _line("question_number", "difficulty", VALUE, "item.number", "its number in the test: the id's tail, -1 none"),
    _line("expected_time", "difficulty", LOG_MS, "item.expected_ms", "log(1 + binned median seconds of right answers)"),
    # item response theory, fitted on training users
    _line("easiness_1pl", "irt", VALUE, "item.easiness", "1PL easiness of the question, net of who answered"),
    _line("easiness_2pl", "irt", VALUE, "item.easiness_2pl", "2PL easiness of the question"),
    _line("discrimination", "irt", VALUE, "item.discrimination", "2PL discrimination of the question"),
    # the student's record on what the question belongs to
    _line("user_right", "counts", LOG_COUNT, "user.right", "log(1 + right answers so far)"),
    _line("user_test_right", "counts", LOG_COUNT, "test.right", "log(1 + right answers in the same test)"),
    _line("user_head_right", "counts", LOG_COUNT, "head.right", "log(1 + right answers in the same head)"),
    *_record("test", "test", "in the same test"),
    *_distance("test", "test", "of the same test"),
    _line(
        "test_time_ago_capped", "test", SINCE_CAPPED, "test.last_ms row.now",
        "seconds since the last visible row of the same test, at most 600, -1 never",
    ),
    *_record("head", "head", "in the same head"),
    *_distance("head", "head", "of the same head"),
    *_record("position", "head", "at the same number of a test"),
    *_distance("question", "question", "to the same question"),
    *_distance("concept", "concept", "on the question's concepts"),
    _line("user_concept_right", "concept", LOG_COUNT, "concept.right", "log(1 + right answers on its concepts): PFA"),
    _line(
        "user_concept_wrong", "concept", LOG_WRONG, "concept.right concept.graded",
        "log(1 + wrong answers on its concepts): PFA",
    ),
    _line(
        "concept_spacing", "concept", LOG_MEAN_MS, "concept.span_ms concept.repeats",
        "log(1 + mean seconds between a row and the next one on the same concept), -1 where there is no next one",
    ),
    *_recent("concept", 5, "concept"),
    # the last answers
    *_recent("user", 10, "recent"),
    *_recent("user", 30, "recent"),
    *_recent("user", 50, "recent", surplus=True),
    *_recent("user", 100, "recent", surplus=True),
    _line(
        "fading_log_odds", "recent", LOG_ODDS, "user.fading user.faded",
        "log-odds, an answer weighs 0.9 of the next: RPFA",
    ),
    _line(
        "concept_fading_log_odds", "recent", LOG_ODDS, "concept.fading concept.faded",
        "log-odds on its concepts, an answer weighs 0.9 of the next: RPFA",
    ),
    _line("run", "recent", VALUE, "trace.run", "right answers in a row (wrong ones: negative)"),
    _line("last_4", "recent", VALUE, "trace.ngram", "the last 4 answers as a number of base 3, newest last"),
    # forgetting: what happened how long ago
    *(feature for window in ("10min", "hour", "day", "week", "month") for feature in _window("user", window)),
    *(feature for window in ("hour", "day", "week", "month") for feature in _window("concept", window)),
    # time
    _line("lag_log", "time", LOG_MS, "trace.lag", "log(1 + seconds since the last visible row), -1 unknown"),
    _line(
        "previous_elapsed_log", "time", LOG_MS, "trace.elapsed_0",
        "log(1 + seconds between the last two visible rows), -1 unknown",
    ),
    _line("lag_capped", "time", CAPPED, "trace.lag", "seconds since the last visible row, at most 600, -1 unknown"),
    _line(
        "previous_elapsed_capped", "time", CAPPED, "trace.elapsed_0",
        "seconds between the last two visible rows, at most 600, -1 unknown",
    ),
    _line("elapsed_2_log", "time", LOG_MS, "trace.elapsed_1", "the same, one row earlier"),
    _line("elapsed_3_log", "time", LOG_MS, "trace.elapsed_2", "the same, two rows earlier"),
    _line("tempo", "time", MEAN, "trace.tempo trace.timed", "mean log ratio of time spent and expected time"),
    _line("last_tempo", "time", VALUE, "trace.last_tempo", "log ratio of the last time spent and the expected one"),
    _line("hour_sin", "time", VALUE, "row.hour_sin", "sine of the hour (UTC)"),
    _line("hour_cos", "time", VALUE, "row.hour_cos", "cosine of the hour (UTC)"),
    _line("weekend", "time", VALUE, "row.weekend", "1 on Saturday and Sunday (UTC)"),
    _line("session_count", "session", LOG_COUNT, "trace.session_seen", "log(1 + rows of the session)"),
    _line(
        "session_log_odds", "session", LOG_ODDS, "trace.session_right trace.session_graded",
        "smoothed log-odds of the session's answers",
    ),
    _line("session_time", "session", LOG_MS, "trace.session_ms", "log(1 + seconds since the session began)"),
    _line("sessions", "session", LOG_COUNT, "trace.sessions", "log(1 + sessions so far)"),
    # cycles: passes of a test
    _line("pass_number", "cycle", VALUE, "pass.number", "earlier full passes of the test: 0 is the first", 2),
    _line("pass_place", "cycle", VALUE, "pass.place", "answers of the running pass", 2),
    _line("pass_right", "cycle", VALUE, "pass.right", "right answers of the running pass", 2),
    _line("pass_log_odds", "cycle", LOG_ODDS, "pass.right pass.graded", "smoothed log-odds of the running pass", 2),
    # the reference's aggregates over (user, UTC day, test) cycles
    *_aggregates("user", "user", "of the student"),
    *_aggregates("user_head", "head", "of the student in the head"),
    *(feature for rows in (10, 30, 50, 100) for feature in _recent("head", rows, "aggregate")),
    _line("day_cycle_count", "aggregate", LOG_COUNT, "day.seen", "log(1 + rows of today's cycle of the test)"),
    _line("day_cycle_right", "aggregate", LOG_COUNT, "day.right", "log(1 + right answers of that cycle)"),
    _line("day_cycle_log_odds", "aggregate", LOG_ODDS, "day.right day.graded", "smoothed log-odds of that cycle"),
    *_recent_in_cycle(10, 30, 50, 100),
    _line("day_cycle_time", "aggregate", LOG_MS, "day.span", "log(1 + seconds of that cycle so far)"),
    _line("day_cycle_gap", "aggregate", LOG_MS, "day.pace", "log(1 + mean seconds between its rows)"),
    # questions that are met again
    _line(
        "repeat_count", "repeat", LOG_COUNT, "repeat.graded",
        "log(1 + answers to questions that the student had answered before)",
    ),
    _line(
        "repeat_rate", "repeat", RATE, "repeat.same repeat.graded",
        "share of them that were as the time before",
    ),
    _line(
        "repeat_recent_rate", "repeat", RATE, "repeat.recent_same repeat.recent_graded",
        "the same of the last 10 of them",
    ),
    _line("repeat_streak", "repeat", LOG_COUNT, "repeat.streak", "log(1 + of them, as the time before, in a row)"),
    _line(
        "repeat_vote", "repeat", VALUE, "repeat.vote",
        "that with the sign of the last answer to the same question, 0 where there is none",
    ),
    _line(
        "replay_rows", "repeat", LOG_COUNT, "repeat.in_order",
        "log(1 + rows that repeat an earlier stretch in its order, where the question continues it)",
    ),
    _line(
        "replay_vote", "repeat", VALUE, "repeat.replay_vote",
        "that with the sign of the last answer to the same question, 0 where there is none",
    ),
    # ratings and likeness
    _line("elo_user", "elo", VALUE, "elo.user", "Elo rating of the student against fitted easiness"),
    _line("elo_concept", "elo", VALUE, "elo.concept", "mean Elo rating of the student in the question's concepts"),
    _line("elo_logit", "elo", VALUE, "elo.logit", "both ratings and the question's easiness together"),
    _line(
        "similar_surplus", "similar", MEAN, "similar.record user.graded",
        "answer minus expected rate, weighted by the likeness of the questions",
    ),
    _line("similar_share", "similar", MEAN, "similar.likeness user.graded", "mean likeness of the answered questions"),
)  # fmt: skip
GROUPS: Final = tuple(dict.fromkeys(feature.group for feature in FEATURES))
FEATURE: Final = {feature.name: feature for feature in FEATURES}

DATA: Final = {
    "time": "timestamps",
    "shown": "times of showing (timestamp_is: shown)",
    "test": "tests",
    "concepts": "concepts",
    "head": "ids of the form A + 3 x 3 digits",
}


def choose(groups: Sequence[str], facts: frozenset[str]) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The features that are on, and why the others are not.

    Args:
        groups: groups that are wanted; `core` is on anyway.
        facts: what the data have: some of DATA.

    Returns:
        names in the order of FEATURES, and name -> reason.
    """
    off: dict[str, str] = {}
    for feature in FEATURES:
        missing = sorted(feature.needs - facts)
        if feature.group != CORE and feature.group not in groups:
            off[feature.name] = f"group {feature.group} is switched off"
        elif feature.group != CORE and missing:
            off[feature.name] = f"the data have no {DATA[missing[0]]}"
    return tuple(feature.name for feature in FEATURES if feature.name not in off), off


def uninformed(facts: frozenset[str]) -> tuple[str, ...]:
    """Features of `core`, which is always on, that tell nothing of their own as the data lack what they need."""
    return tuple(feature.name for feature in FEATURES if feature.group == CORE and feature.needs - facts)


def versions(names: Sequence[str]) -> tuple[str, ...]:
    """`name@version` of features."""
    return tuple(f"{name}@{FEATURE[name].version}" for name in names)


VERSIONS: Final = versions(tuple(FEATURE))  # of all features: part of what a dataset is made from
