"""The lookup of all embeddings in one pass: values, gradients and bad ids are those of a lookup per table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dkt_ray.models import layers
from dkt_ray.models.layers import RowEmbedding, mean_embedding
from dkt_ray.models.lookup import look_up

WIDTHS = {"question": 13, "test": 8, "head": 1, "tail": 16}
SIZES = {"question": 40, "test": 9, "head": 5, "tail": 3, "concepts": 11}
B, T, C = 6, 30, 4


@pytest.fixture
def embed() -> RowEmbedding:
    torch.manual_seed(0)
    return RowEmbedding(WIDTHS, 10, SIZES)


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    ids = torch.stack([torch.randint(0, SIZES[name], (B, T)) for name in WIDTHS], -1)
    return ids.int(), torch.randint(0, SIZES["concepts"], (B, T, C)).int() * torch.randint(0, 2, (B, T, C)).int()


def one_by_one(embed: RowEmbedding, ids: Tensor, concepts: Tensor) -> Tensor:
    parts = [table(column) for table, column in zip(embed.tables.values(), ids.unbind(-1), strict=True)]
    return torch.cat([*parts, mean_embedding(embed.concepts, concepts)], -1)


def gradients(embed: RowEmbedding, found: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 1, found.numel()).view(found.shape)
    return list(torch.autograd.grad((found * weight).sum(), list(embed.parameters())))


def test_values_and_gradients_are_those_of_a_lookup_per_table(embed, rows):
    found, expected = embed(*rows), one_by_one(embed, *rows)
    assert (rows[1] == 0).all(-1).any(), "no row without a concept: this test misses one"
    torch.testing.assert_close(found, expected)
    for name, got, wanted in zip(
        dict(embed.named_parameters()), gradients(embed, found), gradients(embed, expected), strict=True
    ):
        torch.testing.assert_close(got, wanted, msg=name)
        assert got.abs().sum() > 0
        assert not got[0].any(), f"{name}: padding got a gradient"


def test_no_id_column_and_no_concept(embed):
    alone = look_up([embed.concepts.weight], torch.zeros(2, 3, 0).int(), torch.ones(2, 3, 1).int())
    assert torch.equal(alone, embed.concepts.weight[1].expand(2, 3, -1))
    ids = torch.ones(2, 3, len(WIDTHS)).int()
    found = embed(ids, torch.zeros(2, 3, 0).int())
    assert not found[..., -10:].any()
    assert torch.equal(found[0, 0, :13], embed.tables["question"].weight[1])


@pytest.mark.parametrize("wrong", [-1, 9, 2**31 - 1])
@pytest.mark.parametrize("part", [0, 1])
def test_an_id_that_a_table_does_not_have_is_an_error(embed, rows, wrong, part):
    ids, concepts = rows
    (ids, concepts)[part][3, 7, 1] = wrong + 2 * part if wrong == 9 else wrong  # 9 tests, 11 concepts
    with pytest.raises(IndexError, match="an id that the network's tables do not have"):
        embed(ids, concepts)


def test_scoring_copies_no_table(embed, rows, monkeypatch):
    expected = embed(*rows)
    monkeypatch.setattr(layers, "look_up", None)
    with torch.inference_mode():
        torch.testing.assert_close(embed(*rows), expected)


def test_it_is_traced_around(embed, rows):
    compiled = torch.compile(embed, backend="eager")
    torch.testing.assert_close(compiled(*rows), embed(*rows))
