"""SAINT: two streams in step, layers that are PyTorch's own with a mask, and where tokens stand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dkt_ray.errors import ConfigError
from dkt_ray.models.layers import Attention, Block
from dkt_ray.models.saint import DecoderBlock, Saint, SaintConfig, Sinusoids
from tests.sequence_batches import random_batch, small_network, without_numbers

T, VISIBLE = 6, [[0, 3, 6], [6, 1, 4]]
POSITIONS = ["sinusoids", "learned", "none"]
SMALL = {"width": 8, "heads": 2, "inner": 12, "dropout": 0.0}


def changed(before: Tensor, after: Tensor) -> list[int]:
    """The tokens that differ in every student."""
    differs = (before != after).any(-1)
    assert torch.equal(differs.any(0), differs.all(0))
    return differs[0].nonzero().flatten().tolist()


@torch.inference_mode()
def test_the_numbers_of_a_row_reach_its_own_tokens_only() -> None:
    saint, batch = small_network(Saint), random_batch(T, VISIBLE)
    before = saint.streams_of(batch)
    for row in range(T):
        numbers = batch.past_numbers.clone()
        numbers[:, row] += 1
        after = saint.streams_of(replace(batch, past_numbers=numbers))
        assert [changed(*pair) for pair in zip(before, after, strict=True)] == [[row], [row]]
    for target in range(3):
        numbers = batch.target_numbers.clone()
        numbers[:, target] += 1
        after = saint.streams_of(replace(batch, target_numbers=numbers))
        assert [changed(*pair) for pair in zip(before, after, strict=True)] == [[T + target], [T + target]]


@torch.inference_mode()
def test_the_encoder_reads_no_answers() -> None:
    saint, batch = small_network(Saint), random_batch(T, VISIBLE)
    exercises, answers = saint.streams_of(batch)
    other = batch.past_answer.clone()
    other[:, 2] = 3 - other[:, 2]
    moved = saint.streams_of(replace(batch, past_answer=other))
    assert torch.equal(moved[0], exercises)
    assert changed(moved[1], answers) == [2]


def hidden(past: int, visible: Tensor) -> Tensor:
    """[T + M, T + M]: what a token of the only student may not read."""
    M = visible.shape[1]
    earlier = torch.cat([torch.ones(past, past).tril(), torch.zeros(past, M)], 1)
    asked = torch.cat([(torch.arange(past) < visible[0, :, None]).float(), torch.eye(M)], 1)
    return torch.cat([earlier, asked]) == 0


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())


@torch.inference_mode()
def test_the_layers_are_those_of_pytorch_with_a_mask() -> None:
    config = SaintConfig(**SMALL)
    settings = {"dim_feedforward": 12, "dropout": 0.0, "activation": "gelu", "norm_first": True, "batch_first": True}
    encoder, their_encoder = Block(Attention(8, 2, 0.0), 8, 12, 0.0), nn.TransformerEncoderLayer(8, 2, **settings)
    decoder, their_decoder = DecoderBlock(config), nn.TransformerDecoderLayer(8, 2, **settings)
    copy_attention(encoder.attention, their_encoder.self_attn)
    copy_attention(decoder.own, their_decoder.self_attn)
    copy_attention(decoder.cross, their_decoder.multihead_attn)
    for ours, theirs in ((encoder, their_encoder), (decoder, their_decoder)):
        theirs.linear1.load_state_dict(ours.feed_forward[0].state_dict())
        theirs.linear2.load_state_dict(ours.feed_forward[3].state_dict())
    visible, generator = torch.tensor([[0, 2, 6, 6]]), torch.Generator().manual_seed(2)
    tokens, exercises = (torch.randn(1, T + 4, 8, generator=generator) for _ in range(2))
    mask = hidden(T, visible)
    torch.testing.assert_close(encoder(tokens, visible), their_encoder(tokens, mask), rtol=0, atol=1e-5)
    expected = their_decoder(tokens, exercises, mask, mask)
    torch.testing.assert_close(decoder(tokens, exercises, visible), expected, rtol=0, atol=1e-5)
    targets = decoder(tokens, exercises, visible, first=T)
    torch.testing.assert_close(targets, expected[:, T:], rtol=0, atol=1e-5)
    assert (their_decoder(tokens, exercises) - expected).abs().max() > 0.01, "the mask does not matter"


@pytest.mark.parametrize("positions", POSITIONS)
@torch.inference_mode()
def test_a_target_stands_where_the_past_row_would(positions: str) -> None:
    """A target that is asked what past row 3 was asked, after as many rows: one exercise, twice."""
    saint, batch = small_network(Saint, positions=positions), random_batch(T, [[3, 4], [3, 0]])
    batch.target_ids[:, 0], batch.target_concepts[:, 0] = batch.past_ids[:, 3], batch.past_concepts[:, 3]
    batch.target_numbers[:, 0] = batch.past_numbers[:, 3]
    exercises, _ = saint.streams_of(batch)
    torch.testing.assert_close(exercises[:, T], exercises[:, 3], rtol=0, atol=1e-6)
    later, _ = saint.streams_of(replace(batch, visible=batch.visible + 1))
    assert ((later[:, T] - exercises[:, T]).abs().max() > 1e-3) == (positions != "none")


def test_sinusoids_are_those_of_the_paper() -> None:
    for width in (6, 7):
        waves = Sinusoids(width)
        with torch.no_grad():
            waves.scale.fill_(2.0)
        place = torch.tensor([[0, 5, 130]])
        found = waves(torch.zeros(1, 3, width), place)
        for index, position in enumerate((0, 5, 130)):
            angle = torch.tensor([position / 10_000 ** (2 * (i // 2) / width) for i in range(width)])
            expected = torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos())
            torch.testing.assert_close(found[0, index], 2 * expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("numbers", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_weight_is_trained(positions: str, numbers: bool) -> None:
    saint, batch = small_network(Saint, positions=positions, numbers=numbers), random_batch(T, VISIBLE)
    saint(batch if numbers else without_numbers(batch)).square().sum().backward()
    assert [name for name, p in saint.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="width 8 is not a multiple of heads 3"):
        small_network(Saint, heads=3)
    with pytest.raises(ConfigError, match=r"positions.*'rotary'"):
        small_network(Saint, positions="rotary")
