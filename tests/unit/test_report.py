"""Reports: the figures in them are those of the metrics, and the page stands alone."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from dkt_ray import metrics
from dkt_ray.data.history import Coded
from dkt_ray.errors import ConfigError
from dkt_ray.pipelines import figures, report
from dkt_ray.pipelines.charts import Point, label_axis, lines, range_axis, share_axis
from dkt_ray.pipelines.figures import Answers, Contender, Heading, Settings
from dkt_ray.storage import open_store
from dkt_ray.training.protocol import EvaluationSet, Scored
from tests.unit.test_protocol import manifest

RNG = np.random.default_rng(11)
USERS, EACH = 30, 40
USER = np.repeat(np.arange(USERS, dtype=np.int32), EACH)
POSITION = np.tile(np.arange(EACH, dtype=np.int32), USERS)
TRUTH = RNG.random(USERS * EACH)
Y = (RNG.random(USERS * EACH) < TRUTH).astype(np.int8)
ANSWERS = Answers(Y, USER, POSITION, POSITION % 3 > 0)
SET = EvaluationSet(
    data="0" * 16, folds=3, rows=USERS * (EACH - 1), pairs="1" * 16, first_position=1, context=100, bundle="none",
    timestamp_is="submitted",
)  # fmt: skip
HOW = Settings(samples=20)
LEDGER = [{"who": "ann@host", "when": "2026-11-23T10:00:00+00:00", "why": "<b>paper</b>", "dataset": "d"}]


def noisy(amount):
    return np.clip(TRUTH + amount * RNG.normal(size=len(TRUTH)), 0.01, 0.99)


def contenders():
    return {
        "ensemble": Contender("ensemble", noisy(0.1)),
        "lightgbm": Contender("member", noisy(0.2)),
        "bert": Contender("member", noisy(0.4)),
        "counting": Contender("baseline", noisy(0.6)),
        "oracle": Contender("oracle", TRUTH),
    }


def made(several=None):
    weights = {"simplex": {"lightgbm": 0.75, "bert": 0.25}, "fixed": {"lightgbm": 0.5, "bert": 0.5}}
    heading = Heading("Report of x", "Out of fold.", "d", "x")
    several = several or contenders()
    found = figures.make_report(heading, SET, ANSWERS, several, weights, HOW, figures.measure_in_turn)
    return found | {"ledger": LEDGER}


MODELS = contenders()
REPORT = made(MODELS)


class Page(HTMLParser):
    """Collects tags, what they point to, and the text of each table row."""

    def __init__(self):
        super().__init__()
        self.tags, self.links, self.rows, self.open = set(), [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "srcset", "data")]
        if tag == "tr":
            self.rows.append([])
        if tag not in ("meta", "br", "line", "circle", "polyline", "text"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.rows and data.strip():
            self.rows[-1].append(data.strip())


def page(found):
    parser = Page()
    parser.feed(report.render(found))
    return parser


def test_figures_are_those_of_the_metrics_on_the_headline_rows():
    kept = POSITION >= 1
    for name, contender in MODELS.items():
        found, p = REPORT["models"][name], contender.probability
        assert found["kind"] == contender.kind
        assert found["auc"]["value"] == metrics.auc(Y[kept], p[kept])
        assert found["brier"]["value"] == pytest.approx(metrics.brier(Y[kept], p[kept]), abs=1e-12)
        first = kept & ANSWERS.first
        assert found["auc_first_attempts"]["value"] == metrics.auc(Y[first], p[first])
        lengths = {key: estimate["value"] for key, estimate in found["auc_by_history_length"].items()}
        assert lengths == metrics.auc_by_history_length(Y, p, POSITION)
        assert lengths["0"] is not None  # cold starts are reported, outside the headline
    assert REPORT["users"] == USERS
    assert REPORT["method"] == "simplex"


def test_differences_are_paired_and_against_the_best_member_and_counting():
    versus = REPORT["differences"]
    assert versus["best_member"]["against"] == "lightgbm"
    assert versus["counting"]["against"] == "counting"
    assert "counting" not in versus["counting"]["models"]
    kept = POSITION >= 1
    p, q = (MODELS[name].probability[kept] for name in ("ensemble", "counting"))
    assert versus["counting"]["models"]["ensemble"] == pytest.approx(
        metrics.paired_difference(Y[kept], p, q, USER[kept], samples=20)
    )


def test_calibration_and_correlation():
    bins = figures.calibration(np.array([0, 1, 1, 1], np.int8), np.array([0.02, 0.08, 0.55, 1.0]))
    assert bins == [
        {"probability": pytest.approx(0.05), "right": 0.5, "rows": 2},
        {"probability": pytest.approx(0.55), "right": 1.0, "rows": 1},
        {"probability": 1.0, "right": 1.0, "rows": 1},
    ]
    p = RNG.random(50)
    found = figures.correlation({"a": p, "b": 1 - p})
    assert found["a"] == pytest.approx({"a": 1.0, "b": -1.0})
    assert figures.correlation({"a": p}) == {"a": {"a": pytest.approx(1.0)}}
    several, kept = RNG.random((3, 50)), RNG.random(50) < 0.5
    found = figures.correlation(dict(zip("abc", several, strict=True)), kept)
    np.testing.assert_allclose([[*row.values()] for row in found.values()], np.corrcoef(several[:, kept]), rtol=1e-12)


def test_the_page_is_self_contained():
    parser = page(REPORT)
    assert parser.open == []  # every element is closed
    assert "script" not in parser.tags
    assert "link" not in parser.tags
    assert parser.links == []
    assert not re.search(r"https?:|@import|url\(", report.render(REPORT))
    assert "svg" in parser.tags


def test_the_page_shows_every_model_weight_opening_and_the_fingerprint():
    text, rows = report.render(REPORT), page(REPORT).rows
    for name, model in REPORT["models"].items():
        (row,) = (cells for cells in rows if cells[:2] == [name, model["kind"]])
        assert f"{model['auc']['value']:.4f}" in row
        assert f"{model['auc']['low']:.4f} – {model['auc']['high']:.4f}" in row
        assert f"{model['ece']['value']:.4f}" in row
    assert [cells[0] for cells in rows if cells[1:2] == ["member"]] == ["lightgbm", "bert"]  # the best first
    assert ["simplex", "0.7500", "0.2500"] in rows
    assert SET.fingerprint in text
    assert "Openings of a test vault of this store: <b>1</b>" in text
    assert "&lt;b&gt;paper&lt;/b&gt;" in text  # escaped
    assert "lower the mastery" in text  # says what it does not report


TOLD = {
    "method": "simplex",
    "rows": 1200,
    "drop_below": 0.0005,
    "removals": [
        {"member": "bert", "cost": 0.0123, "dropped": True},
    ],
    "stability": {"lightgbm": {"value": 0.75, "mean": 0.74, "low": 0.7, "high": 0.8}},
    "score_us": {"lightgbm": 41.4, "bert": None, "ensemble": 97.0, "ensemble_rank": 97.0},
    "calibrator": "temperature",
    "before": {"log_loss": 0.52, "ece": 0.031, "bins": figures.calibration(Y, TRUTH)},
    "after": {"log_loss": 0.51, "ece": 0.012, "bins": figures.calibration(Y, TRUTH)},
}


def test_the_page_shows_what_was_tried_and_dropped_its_cost_and_calibration():
    found = REPORT | {"ensemble": TOLD}
    parser, text = page(found), report.render(found)
    assert parser.open == []
    assert ["lightgbm", "0.7500", "0.7400", "0.7000 – 0.8000", "41", "–"] in parser.rows
    assert ["bert", "0.2500", "–", "–", "+0.01230: dropped"] in parser.rows
    assert "a calibrator (temperature)" in text
    assert "ensemble_rank 97" in text
    assert text.count("<svg") == report.render(REPORT).count("<svg") + 1


def test_the_body_is_a_part_of_other_pages():
    found = REPORT | {"ensemble": TOLD}
    body = report.sections(found)
    assert "What is served" in body
    assert "<body" not in body
    assert "<style" not in body


def test_figures_that_do_not_exist_are_dashes():
    right = {name: Contender(c.kind, c.probability) for name, c in contenders().items()}
    answers = Answers(np.ones_like(Y), USER, POSITION, ANSWERS.first)
    found = figures.make_report(
        Heading("t", "h", "d", "x"), SET, answers, right, {"fixed": {"lightgbm": 1.0, "bert": 0.0}}, HOW,
        figures.measure_in_turn,
    )  # fmt: skip
    assert found["models"]["ensemble"]["auc"] == {"value": None, "low": None, "high": None}
    (row,) = (cells for cells in page(found).rows if cells[:2] == ["ensemble", "ensemble"])
    assert row[2] == "–"
    assert "nan" not in report.render(found)
    assert "–" in report.text_table(found)


def test_the_text_table_lines_up_and_has_every_model():
    head, *body = report.text_table(REPORT).splitlines()
    assert [line.split()[0] for line in body] == ["oracle", "ensemble", "lightgbm", "bert", "counting"]
    assert {len(line) for line in body} == {len(head)}


def test_signed_has_no_negative_zero():
    assert [report.signed({"value": v}) for v in (-1e-9, 0.0, 0.01234, -0.01)] == [
        "+0.0000",
        "+0.0000",
        "+0.0123",
        "-0.0100",
    ]
    assert report.signed(None) == "–"


def test_a_report_survives_the_store(tmp_path):
    store = open_store(tmp_path)
    assert report.read_report(store, "report") is None
    report.write_report(REPORT, store, "report")
    assert report.read_report(store, "report") == REPORT
    assert store.read("report.html").decode() == report.render(REPORT)
    outcome = report.outcome(REPORT, store, "report")
    assert outcome["auc"]["oracle"] == REPORT["models"]["oracle"]["auc"]["value"]
    assert outcome["weights"] == {"lightgbm": 0.75, "bert": 0.25}
    assert outcome["openings"] == 1
    assert (tmp_path / "report.html").samefile(outcome["report"])


def test_members_of_another_evaluation_set_are_refused_by_name():
    figures.require_same({"bert": SET.fingerprint}, SET)
    with pytest.raises(
        ConfigError, match=f"member bert was scored on evaluation set feed.*{SET.fingerprint}.*dkt tune"
    ):
        figures.require_same({"lightgbm": SET.fingerprint, "bert": "feed"}, SET)


def test_truth_is_found_by_user_and_position_or_refused(tmp_path):
    scored = Scored(Coded(USER, np.array([f"u{k:02d}" for k in range(USERS)], object)), POSITION, USER, Y, TRUTH)
    shuffled = scored.to_table().take(RNG.permutation(len(Y)))
    store = open_store(tmp_path)
    store.write_table("truth.parquet", shuffled)
    path = f"{tmp_path}/truth.parquet"
    np.testing.assert_array_equal(figures.read_truth(path, manifest(), scored), TRUTH)
    with pytest.raises(ConfigError, match="left out 3 rows"):
        figures.read_truth(path, manifest(rejected=1, duplicates=2), scored)
    store.write_table("truth.parquet", shuffled.slice(5))
    with pytest.raises(ConfigError, match=r"5 of 1200 scored rows are not in it"):
        figures.read_truth(path, manifest(), scored)
    before = figures.truth_version(path)
    store.write_table("truth.parquet", shuffled)
    assert figures.truth_version(path) != before


def test_charts_put_points_where_they_belong():
    chart = lines({"a<b": [Point(0, 0.5, 0.4, 0.6), Point(1, 1.0)]}, label_axis("n", ["x", "y"]), share_axis("s"))
    circles = [tuple(map(float, at)) for at in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)]
    assert circles[0][0] < circles[1][0]
    assert circles[0][1] > circles[1][1]  # up is more
    (whisker,) = re.findall(r'class="whisker" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', chart)
    assert float(whisker[1]) > circles[0][1] > float(whisker[3])
    assert "a&lt;b" in chart
    assert "diagonal" not in chart
    assert range_axis("n", [0.7, 0.8]).low < 0.7 < 0.8 < range_axis("n", [0.7, 0.8]).high
    assert range_axis("n", []).low < range_axis("n", []).high
