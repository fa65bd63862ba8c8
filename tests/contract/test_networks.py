"""What every sequence family promises about padding and targets, and proof that a leak would be found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dkt_ray.data.history import Histories
from dkt_ray.features.batch import Rows, SequenceBatch
from dkt_ray.features.collate import collate, segments
from dkt_ray.features.encoder import ID_COLUMNS, EncoderConfig, encode
from dkt_ray.models.base import Model, Probabilities
from dkt_ray.models.catalog import CATALOG
from dkt_ray.models.lstm_attention import LstmAttention
from dkt_ray.models.network import Network
from dkt_ray.training.fit import fit
from tests.contract import world as w

NETWORKS = [name for name, spec in CATALOG.items() if spec.view == "sequence"]
every_network = pytest.mark.parametrize("family", NETWORKS)


@pytest.fixture(scope="session")
def bundled() -> w.World:
    return w.World.of(w.students(60, seed=11), EncoderConfig(bundle="test_run"))


@pytest.fixture(scope="session")
def others() -> Histories:
    return w.students(16, seed=12)


@pytest.fixture(scope="session")
def networks(bundled: w.World) -> dict[str, Network]:
    return {name: fit(name, w.tiny(CATALOG[name], epochs=1), bundled.data).model for name in NETWORKS}


def whole_batch(network: Network, histories: Histories, world: w.World) -> SequenceBatch:
    """All students in one batch."""
    rows = encode(histories, None, world.state).past
    flat = network.flatten(rows)
    return collate(flat, flat, segments(rows, rows, network.config.context))


def noise_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Other values of the same kind: ids 0 and 1, which every column has, or wild numbers."""
    if tensor.is_floating_point():
        return torch.randn(tensor.shape, generator=generator) * 1000
    return torch.randint(0, 2, tensor.shape, generator=generator)


def replaced(batch: SequenceBatch, names: tuple[str, ...], where: torch.Tensor) -> SequenceBatch:
    """The batch with noise in the given fields at the given cells."""
    generator = torch.Generator().manual_seed(0)

    def noisy(tensor: torch.Tensor) -> torch.Tensor:
        return torch.where(where.reshape(where.shape + (1,) * (tensor.ndim - 2)), noise_like(tensor, generator), tensor)

    return replace(batch, **{name: noisy(getattr(batch, name)) for name in names})


PAST = ("past_ids", "past_concepts", "past_numbers", "past_answer")
TARGETS = ("target_ids", "target_concepts", "target_numbers")


@every_network
@torch.inference_mode()
def test_a_logit_per_target_that_is_blind_to_padding(family, networks, bundled, others):
    network = networks[family]
    batch = whole_batch(network, others, bundled)
    logits = network(batch)
    assert logits.shape == batch.visible.shape
    real = batch.rows >= 0
    assert not real.all(), "this batch has no padding"
    readable = torch.arange(batch.past_answer.shape[1]) < batch.visible.max(1, keepdim=True).values
    noisy = replaced(replaced(batch, PAST, ~readable), TARGETS, ~real)
    assert torch.equal(network(noisy)[real], logits[real])

    wider = replace(
        batch, **{name: torch.cat([value, value[:, :5] * 0], 1) for name, value in vars(batch).items() if name in PAST}
    )
    torch.testing.assert_close(network(wider)[real], logits[real], **w.EQUAL)


@every_network
@torch.inference_mode()
def test_a_target_reads_the_visible_past_and_itself_only(family, networks, bundled, others):
    network = networks[family]
    batch = whole_batch(network, others, bundled)
    logits = network(batch)
    for m in range(batch.visible.shape[1]):
        mine = batch.rows[:, m] >= 0
        hidden = torch.arange(batch.past_answer.shape[1]) >= batch.visible[:, m : m + 1]
        rest = (torch.arange(batch.visible.shape[1]) != m).expand_as(batch.visible)
        noisy = replaced(replaced(batch, PAST, hidden), TARGETS, rest)
        assert torch.equal(network(noisy)[mine, m], logits[mine, m])


class ReadsItsOwnAnswer(LstmAttention):
    """One state too far."""

    def forward(self, batch: SequenceBatch) -> torch.Tensor:
        return super().forward(replace(batch, visible=(batch.visible + 1).clamp(max=batch.past_answer.shape[1])))


class ReadsTheWholeBlock(LstmAttention):
    """Pools over the block, as a squeeze-and-excite layer does."""

    def forward(self, batch: SequenceBatch) -> torch.Tensor:
        return super().forward(batch) + batch.past_answer.float().mean(1, keepdim=True)


class IgnoresVisible(LstmAttention):
    """Reads up to its position: correct, but for tests whose questions were shown together."""

    def score(self, past: Rows, targets: Rows) -> Probabilities:
        blind, seeing = (replace(rows, visible=rows.position) for rows in (past, targets))
        return super().score(blind, blind if targets is past else seeing)


class KnowsTheAnswer(Model):
    """A table model whose features hold the label."""

    def score(self, past: Rows, targets: Rows) -> Probabilities:
        return 0.5 + 0.1 * targets.correct + 0.01 * np.cumsum(past.correct)[: targets.rows] / max(past.rows, 1)

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> KnowsTheAnswer:
        return cls()


@pytest.mark.parametrize("leaky", [ReadsItsOwnAnswer, ReadsTheWholeBlock, IgnoresVisible, KnowsTheAnswer])
def test_a_planted_leak_is_found(leaky, networks, bundled, others, tmp_path):
    networks["lstm_attention"].save(tmp_path)
    with pytest.raises(AssertionError, match="an answer moved a row that may not read it"):
        w.check_future_property(leaky.load(tmp_path), others, bundled.state)


@every_network
@pytest.mark.parametrize(
    "embeddings",
    [{}, {"question": 8}, {"tail": 4, "lag": 2}, dict.fromkeys(sorted(set(ID_COLUMNS) - {"previous_correct"}), 4)],
    ids=["none", "one", "some", "all"],
)
def test_any_list_of_features_works(family: str, embeddings: dict[str, int], bundled: w.World) -> None:
    config = w.tiny(CATALOG[family], epochs=1, embeddings=embeddings)
    probability = fit(family, config, bundled.data).model.score(bundled.data.train, bundled.data.train)
    assert np.isfinite(probability).all()
    assert np.ptp(probability) > 0


# Settings that change what a family computes; the defaults have passed the whole suite already.
OPTIONS = [
    ("lstm", {"start": "zero", "layers": 2}),
    ("lstm", {"start": "numbers"}),
    ("bert", {"batch_norm": True, "positions": False, "attention_dropout": 0.1}),
    ("bert", {"t_fixup": True, "warmup": 0.0}),
    ("saint", {"positions": "learned", "attention_dropout": 0.1, "batch_norm": True}),
    ("saint", {"positions": "none", "numbers": False}),
    ("akt", {"simple": True, "numbers": False}),
    ("akt", {"encoder_layers": 2, "layers": 2, "attention_dropout": 0.1}),
    ("last_query", {"variant": "riiid_7", "layers": 2}),
    ("last_query", {"numbers": False, "layers": 2}),
]


@pytest.mark.parametrize(("family", "settings"), OPTIONS)
def test_options_keep_the_promises(family, settings, bundled, others):
    model = fit(family, w.tiny(CATALOG[family], epochs=1, **settings), bundled.data).model
    w.check_future_property(model, others, bundled.state)
    w.check_many_targets(model, others, bundled.state)
