"""One answer whatever the way: alone, in a batch, as hidden rows of a file; and what a request may leave out."""

from dataclasses import replace

import numpy as np
import pytest

from dkt_ray.data.history import Histories
from dkt_ray.data.query import Query, gather
from tests import bundles


@pytest.fixture(scope="module")
def world():
    return bundles.world()


def query_of(histories: Histories, user: int, targets: list[str], timed: bool = True) -> Query:
    rows = slice(*histories.offsets[user : user + 2])
    times = histories.timestamp[rows].tolist() if timed else None
    questions, correct = histories.question.strings()[rows].tolist(), histories.correct[rows].tolist()
    return Query(questions, correct, targets, timestamp=times, at=times[-1] + 60_000 if times else None)


def same(a, b) -> None:
    np.testing.assert_allclose(a.probability, b.probability, rtol=0, atol=1e-6)
    for family in a.members:
        np.testing.assert_allclose(a.members[family], b.members[family], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(a.unknown, b.unknown)


def test_a_batch_of_requests_answers_as_each_request_alone(world, predictor):
    known = world.state.questions["question"].to_pylist()
    queries = [query_of(world.histories, user, known[user : user + 3], timed=user % 2 == 0) for user in range(8)]
    queries.insert(3, Query([], [], known[:2]))
    queries.insert(5, replace(query_of(world.histories, 9, known[:1]), at=None))
    together = predictor.answer(queries)
    for query, scores in zip(queries, together, strict=True):
        assert len(scores.probability) == len(query.target)
        same(predictor.answer([query])[0], scores)


def test_many_targets_answer_as_each_target_alone(world, predictor):
    known = world.state.questions["question"].to_pylist()
    together = predictor.answer([query_of(world.histories, 2, known)])[0]
    for index, question in enumerate(known):
        same(predictor.answer([query_of(world.histories, 2, [question])])[0], together.take(slice(index, index + 1)))


def test_the_ensemble_is_the_weighted_mean_of_its_members(world, predictor):
    scores = predictor.answer([query_of(world.histories, 1, world.state.questions["question"].to_pylist())])[0]
    expected = sum(bundles.WEIGHTS[family] * column for family, column in scores.members.items())
    np.testing.assert_allclose(scores.probability, expected, atol=1e-12)
    assert np.ptp(scores.probability) > 0.05  # the questions differ, so do the answers


def test_hidden_rows_of_a_file_score_as_requests(world, predictor):
    users = np.arange(12)
    histories = world.histories.select(users)
    last = histories.offsets[1:] - 1
    correct = histories.correct.copy()
    correct[last] = -1
    hidden = replace(histories, correct=correct)
    scores = predictor.score_rows(hidden)
    past = histories.head(histories.lengths - 1)
    questions, times = histories.question.strings(), histories.timestamp
    for user in users:
        one = query_of(past, int(user), [questions[last[user]]])
        one = replace(one, at=int(times[last[user]]))
        same(predictor.answer([one])[0], scores.take(slice(int(user), int(user) + 1)))


def test_hidden_rows_may_stand_anywhere_and_read_only_what_came_before(world, predictor):
    histories = world.histories.select(np.arange(5))
    correct = histories.correct.copy()
    rows = np.array([0, 4, int(histories.offsets[2]) + 3, histories.rows - 1])
    correct[rows] = -1
    scores = predictor.score_rows(replace(histories, correct=correct))
    assert len(scores.probability) == len(rows)
    turned = np.where(correct == -1, correct, 1 - correct)
    later = np.arange(histories.rows) > rows[1]
    first_two = predictor.score_rows(replace(histories, correct=np.where(later, turned, correct).astype(np.int8)))
    same(first_two.take(slice(0, 2)), scores.take(slice(0, 2)))


def test_known_questions_need_no_test_or_concepts(world, predictor):
    rows = slice(*world.histories.offsets[3:5])
    bare = query_of(world.histories, 3, world.histories.question.strings()[:3].tolist())
    full = replace(
        bare,
        test=world.histories.test.strings()[rows].tolist(),
        concepts=world.histories.concepts.strings()[rows].tolist(),
        target_test=world.histories.test.strings()[:3].tolist(),
        target_concepts=world.histories.concepts.strings()[:3].tolist(),
    )
    same(predictor.answer([bare])[0], predictor.answer([full])[0])


def test_an_unknown_question_is_flagged_and_its_concepts_count(world, predictor):
    past = query_of(world.histories, 3, ["never seen"])
    scores = predictor.answer([past])[0]
    assert scores.unknown.tolist() == [True]
    with_concept = predictor.answer([replace(past, target_concepts=["3"])])[0]
    assert with_concept.unknown.tolist() == [True]
    assert with_concept.probability[0] != scores.probability[0]
    assert not predictor.answer([query_of(world.histories, 3, ["A000000000"])])[0].unknown[0]


def test_an_empty_history_is_legal_and_answers_alike_for_everybody(world, predictor):
    known = world.state.questions["question"].to_pylist()
    cold = predictor.answer([Query([], [], known), Query([], [], known, at=1_700_000_000_000)])
    assert np.isfinite(cold[0].probability).all()
    same(*cold)


def test_no_requests_and_no_hidden_rows_give_nothing(world, predictor):
    assert predictor.answer([]) == []
    assert len(predictor.score_rows(world.histories.select(np.arange(3))).probability) == 0


def test_gather_refuses_to_mix_timings():
    with pytest.raises(AssertionError):
        gather([Query(["a"], [1], ["b"]), Query(["a"], [1], ["b"], timestamp=[5])])


def test_the_catalogue_lists_the_most_answered_first_and_probes_every_concept(world, predictor):
    rows = predictor.catalogue.rows
    assert [row["count"] for row in rows] == sorted((row["count"] for row in rows), reverse=True)
    assert len(rows) == len(world.state.questions)
    of = predictor.catalogue.concepts_of
    assert set(predictor.catalogue.concepts) == {concept for concepts in of.values() for concept in concepts}
    for concept, probes in predictor.catalogue.probes(predictor.catalogue.concepts).items():
        having = [row["question"] for row in rows if concept in row["concepts"]]
        assert probes == having[:3]


def test_difficulty_is_the_smoothed_share_of_wrong_answers(world, predictor):
    hardest = max(predictor.catalogue.rows, key=lambda row: row["difficulty"])
    rows = world.histories.question.strings() == hardest["question"]
    wrong, overall = (world.histories.correct[rows] == 0).sum(), (world.histories.correct == 0).mean()
    assert hardest["difficulty"] == pytest.approx((wrong + 10 * overall) / (rows.sum() + 10), abs=2e-3)
