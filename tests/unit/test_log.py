"""Log lines: JSON for machines, short for people; progress in both."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from dkt_ray import log
from dkt_ray.errors import ConfigError

Capture = pytest.CaptureFixture[str]

logger = logging.getLogger("dkt_ray.somewhere")


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("dkt_ray")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def lines(capsys: Capture) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_lines_where_there_is_no_terminal(capsys: Capture) -> None:
    log.configure()
    logger.info(
        "read %d rows",
        3,
        extra={
            "rows": 3,
            "path": {
                "odd",
            },
        },
    )
    (line,) = lines(capsys)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(line.pop("ts"))).total_seconds()) < 60
    assert line == {
        "level": "INFO",
        "logger": "dkt_ray.somewhere",
        "message": "read 3 rows",
        "rows": 3,
        "path": "{'odd'}",
    }


def test_an_exception_stays_on_one_json_line(capsys: Capture) -> None:
    log.configure(json=True)
    try:
        raise KeyError("lost")
    except KeyError:
        logger.exception("failed")
    (line,) = lines(capsys)
    assert line["level"] == "ERROR"
    assert "KeyError: 'lost'" in line["exception"]


def test_short_lines_on_a_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log.configure()
    logger.info("read 3 rows", extra={"rows": 3})
    logger.warning("nearly full")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(" read 3 rows")
    assert "INFO" not in first
    assert second.endswith("WARNING: nearly full")


def test_the_form_can_be_forced(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log.configure(json=True)
    logger.info("x")
    assert lines(capsys)[0]["message"] == "x"


def test_configuring_again_replaces_the_handler(capsys: Capture) -> None:
    log.configure()
    log.configure(level="WARNING")
    logger.info("not shown")
    logger.warning("once")
    assert [line["message"] for line in lines(capsys)] == ["once"]


def test_libraries_are_heard_from_warning_on(capsys: Capture) -> None:
    log.configure(level="DEBUG")
    logging.getLogger("somelib").info("chatter")
    logging.getLogger("somelib").warning("trouble")
    logger.debug("detail")
    assert [line["message"] for line in lines(capsys)] == ["trouble", "detail"]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="'LOUD'; expected DEBUG"):
        log.configure(level="LOUD")


def test_progress_reports_share_and_time_left(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _clock(monkeypatch, [0, 0, 1, 3, 8])
    log.configure()
    with log.progress("encode", 16) as progress:
        progress.advance()  # 1 s: too early
        progress.advance(2)  # 3 s
        progress.advance(13, note="b=015")  # 8 s: the end
    assert not clock
    first, second = lines(capsys)
    assert first["message"] == "encode 3/16 (19 %) eta 13 s"
    assert (first["stage"], first["done"], first["total"], first["eta_s"]) == ("encode", 3, 16, 13.0)
    assert second["message"] == "encode 16/16 (100 %) in 8.0 s b=015"


def test_progress_over_items(capsys: Capture) -> None:
    log.configure()
    assert list(log.progress("fold", 3).over("abc")) == ["a", "b", "c"]
    assert [line["done"] for line in lines(capsys)] == [3]


def test_progress_of_a_stage_that_fails_says_where(capsys: Capture) -> None:
    log.configure()
    steps = log.progress("fold", 3).over("abc")
    next(steps), next(steps)
    with pytest.raises(KeyError):
        steps.throw(KeyError())
    assert [line["message"] for line in lines(capsys)] == ["fold stopped at 1/3"]


def test_progress_of_nothing(capsys: Capture) -> None:
    log.configure()
    assert list(log.progress("fold", 0).over([])) == []
    assert capsys.readouterr().err == ""


def _clock(monkeypatch: pytest.MonkeyPatch, times: list[float]) -> list[float]:
    monkeypatch.setattr("dkt_ray.log.time.monotonic", lambda: times.pop(0))
    return times


def test_lines_that_are_gathered_are_all_written_in_order_each_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    busy = logging.getLogger("dkt_ray.busy")
    busy.setLevel(logging.INFO)
    log.gather(busy)
    log.gather(busy)
    [handler] = busy.handlers
    try:
        for number in range(100):
            busy.info("line", extra={"number": number})
        handler.flush()
        busy.info("line", extra={"number": 100})
        give_up = time.monotonic() + 60
        while written.getvalue().count("\n") < 101 and time.monotonic() < give_up:  # the last one is written by itself
            time.sleep(0.02)
    finally:
        busy.removeHandler(handler)
    assert [json.loads(line)["number"] for line in written.getvalue().splitlines()] == list(range(101))
