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
from dkt_ray.registry import bundle
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


def test_a_mean_comes_back_and_is_the_mean(tmp_path: Path) -> None:
    parts = tuple(bundles.trained().values())
    member.save(member.Mean(parts), tmp_path)
    again = member.load(tmp_path)
    expected = np.mean([part.score(rows(), rows()) for part in parts], axis=0)
    np.testing.assert_allclose(again.score(rows(), rows()), expected, rtol=0, atol=1e-15)


def test_a_bundle_serves_special_members(tmp_path: Path) -> None:
    network, world = bundles.trained()["lstm_attention"], bundles.world()
    models = {
        "shifted": member.Mean((network, Shifted.of(network, 2))),
        "neighbours": Neighbours.fit(NeighboursConfig(k=5), rows(), world.state),
    }
    for name, model in models.items():
        (tmp_path / name).mkdir()
        member.save(model, tmp_path / name)
    folders = {name: tmp_path / name for name in models}
    digest = bundles.build(tmp_path / "bundle", folders, {"shifted": 0.6, "neighbours": 0.4})
    served = bundle.verify(tmp_path / "bundle", digest).scorer.members  # its golden requests were answered again
    for name, model in models.items():
        assert np.array_equal(served[name].score(rows(), rows()), model.score(rows(), rows()))


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
