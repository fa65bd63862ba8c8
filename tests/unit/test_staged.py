"""`pipelines.staged`: the lines of a job of several stages."""

from __future__ import annotations

import logging
import re

import pytest

from dkt_ray.pipelines.staged import Stages


def test_every_stage_is_announced_and_says_whether_it_had_anything_to_do(caplog: pytest.LogCaptureFixture) -> None:
    stages = Stages("bake", 3)
    with caplog.at_level(logging.INFO, logger="dkt_ray.pipelines.staged"):
        assert stages.run("knead", lambda: {"dough": 1}) == {"dough": 1}
        stages.run("rise", lambda: {"reused": True})
        with pytest.raises(ValueError, match="burnt"):
            stages.run("bake", lambda: int("burnt"))
    lines = [re.sub(r"\d+\.\d s", "0.0 s", record.getMessage()) for record in caplog.records]
    assert lines == [
        "bake: stage 1 of 3, knead",
        "bake: stage 1 of 3, knead: done in 0.0 s",
        "bake: stage 2 of 3, rise",
        "bake: stage 2 of 3, rise: done in 0.0 s (nothing has changed: reused)",
        "bake: stage 3 of 3, bake",
    ]
    assert list(stages.seconds) == ["knead", "rise"]
