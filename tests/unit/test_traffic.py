"""Who answers a student, what is counted, and which figures end a canary."""

import re

import numpy as np
import pytest

from dkt_ray.serving.traffic import Counts, Findings, Limits, is_challengers, place, reason_to_abort, silence


def counts(answered, errors=0, ms=10.0):
    found = Counts()
    for number in range(answered + errors):
        found.add(ms / 1000, failed=number >= answered)
    return found


def test_students_are_dealt_evenly_stably_and_anew_under_another_key():
    students = [f"student {n}" for n in range(4000)]
    places = np.array([place(student, "one") for student in students])
    assert places.min() >= 0
    assert places.max() < 1
    np.testing.assert_allclose(np.histogram(places, 10, (0, 1))[0], 400, atol=80)
    assert places.tolist() == [place(student, "one") for student in students]
    again = np.array([place(student, "two") for student in students])
    assert abs(np.corrcoef(places, again)[0, 1]) < 0.06
    assert place("student", "a key") == pytest.approx(0.3906127685, abs=1e-9)  # replicas, machines and releases agree


def test_a_growing_share_keeps_whom_it_has_and_leaves_out_who_has_no_name():
    students = [f"student {n}" for n in range(500)]
    sides = [{s for s in students if is_challengers(s, share, "key")} for share in (0, 0.05, 0.25, 1)]
    assert [bool(side) for side in sides] == [False, True, True, True]
    assert sides[1] < sides[2] < sides[3] == set(students)
    assert not is_challengers(None, 1.0, "key")


def test_counts_of_replicas_add_up_and_the_quantile_is_within_ten_percent():
    total = counts(95, ms=20.0) + counts(0, errors=5, ms=300.0)
    assert (total.answered, total.errors, total.ended) == (95, 5, 100)
    assert 20 <= total.p95_ms <= 22.1
    assert 300 <= (total + counts(0, errors=1, ms=300.0)).p95_ms <= 331
    assert Counts().p95_ms is None
    one, two = Findings(counts(1), counts(2), 3, 0.3), Findings(counts(4), counts(5), 1, 0.3)
    both = one + two
    assert (both.champion.ended, both.challenger.ended, both.disagreement) == (5, 7, pytest.approx(0.15))


@pytest.mark.parametrize(
    ("challenger", "apart", "reason"),
    [
        (counts(100), 0.01, None),
        (counts(97, errors=3), 0.01, "errors: 3 of 100 answers failed"),
        (counts(100, ms=300.0), 0.01, r"latency: 95 % within 3\d\d ms, the champion 1\d ms, at most 22\d ms"),
        (counts(100), 0.2, "disagreement: 0.200 apart on average of 50 requests"),
        (counts(10, errors=9, ms=500.0), 0.01, None),  # too few to tell
    ],
)
def test_what_is_worse_beyond_a_limit_ends_the_canary(challenger, apart, reason):
    found = reason_to_abort(Findings(counts(100), challenger, 50, 50 * apart), Limits())
    assert re.match(reason, found) if reason else found is None


@pytest.mark.parametrize(
    ("asked", "challenger", "silent"),
    [
        (100, counts(0), True),
        (100, counts(19), True),
        (100, counts(20), False),  # enough to judge by
        (30, counts(16), False),  # the others are open
        (30, counts(7, errors=7), True),
        (19, counts(0), False),  # too few to tell
    ],
)
def test_a_challenger_that_answers_nobody_is_noticed(asked, challenger, silent):
    challenger.asked = asked
    found = Findings(counts(100), challenger) + Findings()
    assert (silence(found, Limits()) is not None) == silent


def test_a_client_that_has_gone_counts_by_how_long_it_waited():
    slow = counts(20)
    for _ in range(5):
        slow.add(10.0, failed=None)
    assert (slow.answered, slow.errors) == (20, 0)
    assert "latency" in reason_to_abort(Findings(counts(100), slow), Limits())
