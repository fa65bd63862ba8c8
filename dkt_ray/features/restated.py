"""The reference system's 33 row features and 13 aggregates, and the columns that restate them from the past only.

The reference computed most of its rates over a user's whole history, the answer to be predicted included. Restated,
several become one; `collapsed` lists which. docs/features.md prints both tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# reference-system's name -> our columns (a count and the smoothed log-odds of it say what a sum and a rate said)
ROW_FEATURES: Final[dict[str, tuple[str, ...]]] = {
    "time_diff": ("previous_elapsed_log", "lag_log"),
    "UserCumtestnum": ("user_count",),
    "UserTagCumtestnum": ("user_concept_count",),
    "UserTestCumtestnum": ("user_test_count",),
    "TestSize": ("test_size",),
    "Retest": ("pass_number",),
    "UserCycleCumtestnum": ("pass_place",),
    "testNumber": ("question_number",),
    "UserCumcorrectnum": ("user_right",),
    "UserCumcorrectper": ("user_log_odds",),
    "UserTagCumcorrectnum": ("user_concept_right",),
    "UserTagCumcorrectper": ("user_concept_log_odds",),
    "UserTestCumcorrectnum": ("user_test_right",),
    "UserTestCumcorrectper": ("user_test_log_odds",),
    "UserCycleCumcorrectnum": ("pass_right",),
    "UserCycleCumcorrectper": ("pass_log_odds",),
    "quesCnt": ("user_count",),
    "correctCnt": ("user_right",),
    "correctPer": ("user_log_odds",),
    "top10CorrectPer": ("recent_10_log_odds",),
    "top30CorrectPer": ("recent_30_log_odds",),
    "top50CorrectPer": ("recent_50_log_odds",),
    "top100CorrectPer": ("recent_100_log_odds",),
    "TagCorrectPer": ("concept_log_odds",),
    "TagCorrectSum": ("concept_right",),
    "UserTagCorrectPer": ("user_concept_log_odds",),
    "UserTagCorrectSum": ("user_concept_right",),
    "TestCorrectPer": ("test_log_odds",),
    "TestCorrectSum": ("test_right",),
    "UserTestCorrectPer": ("user_test_log_odds",),
    "UserTestCorrectSum": ("user_test_right",),
    "AssessmentCorrectPer": ("question_log_odds",),
    "AssessmentCorrectSum": ("question_right",),
}
# the 13 aggregates of the rows before, at three levels; "" where a level has nothing to tell
LEVELS: Final = ("user", "user and head", "cycle (user, UTC day, test)")
AGGREGATES: Final[dict[str, tuple[str, str, str]]] = {
    "QuesCnt": ("user_count", "user_head_count", "day_cycle_count"),
    "CorrectCnt": ("user_right", "user_head_right", "day_cycle_right"),
    "CorrectPer": ("user_log_odds", "user_head_log_odds", "day_cycle_log_odds"),
    "CycleCnt": ("user_cycles", "user_head_cycles", ""),
    "QuesPerCycle": ("user_rows_per_cycle", "user_head_rows_per_cycle", "day_cycle_count"),
    "Max-MinTimestampDay": ("user_span_days", "user_head_span_days", "day_cycle_time"),
    "MeanCycleIntervalDay": ("user_cycle_interval", "user_head_cycle_interval", ""),
    "Top10CorrectPer": ("recent_10_log_odds", "head_recent_10_log_odds", "day_cycle_recent_10_log_odds"),
    "Top30CorrectPer": ("recent_30_log_odds", "head_recent_30_log_odds", "day_cycle_recent_30_log_odds"),
    "Top50CorrectPer": ("recent_50_log_odds", "head_recent_50_log_odds", "day_cycle_recent_50_log_odds"),
    "Top100CorrectPer": ("recent_100_log_odds", "head_recent_100_log_odds", "day_cycle_recent_100_log_odds"),
    "LastCycleCorrectPer": ("user_test_log_odds", "user_test_log_odds", "day_cycle_log_odds"),
    "MeanTimeDiffinCycle": ("user_cycle_gap", "user_head_cycle_gap", "day_cycle_gap"),
}


def collapsed() -> Mapping[str, tuple[str, ...]]:
    """Our column -> the reference's names that became one in it."""
    names: dict[str, list[str]] = {}
    for name, columns in ROW_FEATURES.items():
        for column in columns:
            names.setdefault(column, []).append(name)
    for name, levels in AGGREGATES.items():
        for level, column in zip(LEVELS, levels, strict=True):
            if column:
                names.setdefault(column, []).append(f"{name} ({level})")
    return {column: tuple(several) for column, several in names.items() if len(several) > 1}
