"""`ensemble.member`: a member's folder gives back the member, whatever its form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dkt_ray.ensemble import member
from dkt_ray.ensemble.neighbours import Neighbours, NeighboursConfig
from dkt_ray.ensemble.shift import Shifted
from dkt_ray.errors import ConfigError
from dkt_ray.features.encoder import encode
from dkt_ray.models.lgbm import LightGBM, LightGBMConfig
from dkt_ray.registry import bundle
from dkt_ray.training.fit import TrainingData, fit
from tests import bundles


def rows():
    world = bundles.world()
    return encode(world.histories, None, world.state).past


@pytest.mark.parametrize("family", bundles.SMALL)
def test_a_model_of_a_family_comes_back(family: str, tmp_path: Path) -> None:
    model = bundles.trained()[family]
    member.save(model, tmp_path)
    again = member.load(tmp_path)
    assert type(again) is type(model)
    assert np.array_equal(again.score(rows(), rows()), model.score(rows(), rows()))
    assert again.contexts == ({32} if family == "lstm_attention" else set())


def test_a_mean_comes_back_and_is_the_mean(tmp_path: Path) -> None:
    parts = tuple(bundles.trained().values())
    member.save(member.Mean(parts), tmp_path)
    again = member.load(tmp_path)
    expected = np.mean([part.score(rows(), rows()) for part in parts], axis=0)
    np.testing.assert_allclose(again.score(rows(), rows()), expected, rtol=0, atol=1e-15)


def stacked() -> member.Stacked:
    """A booster on one network's log-odds, fitted on rows that the network knows: good enough to be saved and read."""
    network, world = bundles.trained()["lstm_attention"], bundles.world()
    own = member.with_log_odds(rows(), [network.score(rows(), rows())])
    config = LightGBMConfig(rounds=5, min_data_in_leaf=20, feature_fraction=1.0)
    data = TrainingData(own, None, world.state, member.columns_of(["lstm_attention"]))
    booster = fit("lightgbm", config, data, iterations=5).model
    assert isinstance(booster, LightGBM)
    return member.Stacked(("lstm_attention",), (network,), booster)


def test_a_stack_comes_back_and_reads_the_log_odds(tmp_path: Path) -> None:
    model, network = stacked(), bundles.trained()["lstm_attention"]
    assert model.importance()["log_odds_lstm_attention"] > 0
    p = network.score(rows(), rows())
    expected = model.booster.score(rows(), member.with_log_odds(rows(), [p]))
    member.save(model, tmp_path)
    again = member.load(tmp_path)
    assert np.array_equal(again.score(rows(), rows()), expected)
    again.check(bundles.world().state.number_names)
    with pytest.raises(ConfigError, match="the encoder has"):
        again.check(("other",))


def test_a_row_whose_log_odds_nobody_knows_has_none() -> None:
    p = np.full(rows().rows, 0.75)
    p[0] = np.nan
    column = member.with_log_odds(rows(), [p]).numbers[:, -1]
    assert np.isnan(column[0])
    np.testing.assert_allclose(column[1:], np.log(3), rtol=1e-6)


def test_a_bundle_serves_special_members(tmp_path: Path) -> None:
    network, world = bundles.trained()["lstm_attention"], bundles.world()
    models = {
        "shifted": member.Mean((network, Shifted.of(network, 2))),
        "neighbours": Neighbours.fit(NeighboursConfig(k=5), rows(), world.state),
        "stacked": stacked(),
    }
    for name, model in models.items():
        (tmp_path / name).mkdir()
        member.save(model, tmp_path / name)
    folders = {name: tmp_path / name for name in models}
    digest = bundles.build(tmp_path / "bundle", folders, {"shifted": 0.5, "neighbours": 0.3, "stacked": 0.2})
    served = bundle.verify(tmp_path / "bundle", digest).scorer.members  # its golden requests were answered again
    for name, model in models.items():
        assert np.array_equal(served[name].score(rows(), rows()), model.score(rows(), rows()))
        assert served[name].contexts == ({32} if name == "shifted" else set())


def test_a_mean_refuses_an_encoder_that_a_part_does_not_know() -> None:
    mean = member.Mean(tuple(bundles.trained().values()))
    mean.check(bundles.world().state.number_names)
    with pytest.raises(ConfigError, match="the encoder has other"):
        mean.check(["other"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not readable as JSON"),
        ("{", "not readable as JSON"),
        ("[]", "expected a JSON object"),
        ('{"family": "gru"}', "holds {'family': 'gru'}; this package reads families lightgbm"),
        ("{}", "this package reads"),
    ],
)
def test_what_is_no_member_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / member.FORM).write_text(text)
    with pytest.raises(ConfigError, match=message):
        member.load(tmp_path)


def test_the_importance_of_a_mean_is_the_mean_where_every_part_knows() -> None:
    trees, other, network = (
        bundles.trained()["lightgbm"],
        bundles.trained(1)["lightgbm"],
        bundles.trained()["lstm_attention"],
    )
    shares = [model.importance() for model in (trees, other)]
    mean = member.Mean((trees, other)).importance()
    assert mean is not None
    for name, share in mean.items():
        assert share == pytest.approx(sum(each[name] for each in shares) / 2)
    assert sum(mean.values()) == pytest.approx(1)
    assert member.Mean((trees, network)).importance() is None
