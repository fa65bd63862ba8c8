"""BERT: the attention is Hugging Face's with a boolean mask, nothing comes from the network, T-Fixup is T-Fixup."""

from __future__ import annotations

import socket
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from dkt_ray.config import build
from dkt_ray.errors import ConfigError
from dkt_ray.features.collate import Scale
from dkt_ray.models.bert import Bert, BertConfig, encode, encoder
from dkt_ray.models.catalog import CATALOG
from dkt_ray.models.network import Inputs
from dkt_ray.training.fit import fit
from tests.contract import world as w

SMALL = {"context": 8, "width": 16, "heads": 2, "inner": 32, "embeddings": {"question": 8}}
FIXED = {"t_fixup": True, "warmup": 0.0}


def config(**changes: Any) -> BertConfig:
    return build(BertConfig, SMALL | changes)


def network(**changes: Any) -> Bert:
    inputs = Inputs({"question": 500, "concepts": 50}, Scale(np.zeros(3), np.ones(3)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Bert(config(**changes), inputs)


def boolean_mask(visible: Tensor, past: int) -> Tensor:
    """[B, 1, T + M, T + M]: the rule of the encoder, as a table."""
    B, M = visible.shape
    earlier = torch.ones(past, past, dtype=torch.bool).tril().expand(B, past, past)
    nothing = torch.zeros(B, past, M, dtype=torch.bool)
    read = torch.arange(past) < visible[..., None]
    itself = torch.eye(M, dtype=torch.bool).expand(B, M, M)
    return torch.cat([torch.cat([earlier, nothing], 2), torch.cat([read, itself], 2)], 1)[:, None]


@torch.inference_mode()
def test_the_attention_is_that_of_transformers_with_a_boolean_mask() -> None:
    ours = encoder(config(layers=3)).eval()
    theirs = transformers.BertModel(ours.config.__class__(**ours.config.to_diff_dict()), add_pooling_layer=False).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.set_attn_implementation("sdpa")
    T, visible = 9, torch.tensor([[0, 1, 4, 9, 9], [9, 0, 0, 2, 7]])
    tokens = torch.randn(2, T + 5, 16, generator=torch.Generator().manual_seed(1))
    where = torch.cat([torch.arange(T).expand(2, T), visible], 1)
    seen = encode(ours, tokens, visible)
    masked = theirs(inputs_embeds=tokens, position_ids=where, attention_mask=boolean_mask(visible, T)).last_hidden_state
    torch.testing.assert_close(seen, masked[:, T:], rtol=0, atol=1e-5)
    unmasked = theirs(inputs_embeds=tokens, position_ids=where).last_hidden_state
    assert (seen - unmasked[:, T:]).abs().max() > 0.01, "the mask does not matter: this test would see nothing"


def test_it_is_made_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> NoReturn:
        raise AssertionError(f"reached for {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    network()


def test_the_settings_reach_the_encoder() -> None:
    bert = network(layers=3, heads=4, dropout=0.3, attention_dropout=0.4, context=10)
    shares = {name.rsplit(".", 2)[-2]: m.p for name, m in bert.encoder.named_modules() if isinstance(m, nn.Dropout)}
    assert shares == {"embeddings": 0.3, "self": 0.4, "output": 0.3}
    assert len(bert.encoder.encoder.layer) == 3
    assert bert.encoder.encoder.layer[0].attention.self.num_attention_heads == 4
    assert bert.encoder.embeddings.position_embeddings.weight.shape == (20, 16)
    with pytest.raises(ConfigError, match="hidden_dropout_prob"):
        config(hidden_dropout_prob=0.1)
    with pytest.raises(ConfigError, match="width 16 is not a multiple of heads 3"):
        config(heads=3)


def test_t_fixup_scales_the_weights_by_the_formulas_of_the_paper() -> None:
    N, D = 3, 64
    bert = network(**FIXED, layers=N, width=D, heads=4, inner=96, answer_embedding=8)
    assert not [m for m in bert.modules() if isinstance(m, nn.LayerNorm)]

    scaled = 0.67 * N**-0.25
    seen = 0
    for layer in bert.encoder.encoder.layer:
        attention = layer.attention
        expected = {attention.self.query: 1.0, attention.self.key: 1.0, attention.self.value: scaled}
        expected |= dict.fromkeys((attention.output.dense, layer.intermediate.dense, layer.output.dense), scaled)
        for linear, factor in expected.items():
            check_xavier(linear, factor)
            seen += 1
        assert {m for m in layer.modules() if isinstance(m, nn.Linear)} == set(expected)
    others = [m for m in bert.modules() if isinstance(m, nn.Linear)]
    assert len(others) > seen
    for linear in (bert.inputs.ids[0], bert.inputs.combine[1], bert.head.hidden[0], bert.head.out):
        check_xavier(linear, 1.0)

    for table in (bert.inputs.embed.tables["question"], bert.encoder.embeddings.position_embeddings):
        rows = table.weight[1:].detach()
        assert float(rows.std()) == pytest.approx(table.embedding_dim**-0.5 * (9 * N) ** -0.25, rel=0.06)
    assert not bert.inputs.embed.tables["question"].weight[0].any()


def check_xavier(linear: nn.Linear, factor: float) -> None:
    """Uniform up to factor times the square root of 6 / (inputs + outputs), and no bias."""
    bound = factor * (6 / sum(linear.weight.shape)) ** 0.5
    largest = float(linear.weight.detach().abs().max())
    assert 0.93 * bound < largest <= bound * (1 + 1e-6)
    assert not linear.bias.any()


def test_t_fixup_trains_six_layers_without_warm_up() -> None:
    data = w.World.of(w.students(120, seed=2)).data
    settings = w.tiny(CATALOG["bert"], **FIXED, layers=6, epochs=4, learning_rate=2e-3)
    result = fit("bert", settings, data)
    assert result.curve[0].loss < 1.0  # unscaled weights: 2.8, and worse with each layer
    assert result.curve[-1].loss < 0.67
    assert result.auc is not None
    assert result.auc > 0.68
    with pytest.raises(ConfigError, match=r"t_fixup trains without warm-up: set warmup to 0 \(now 0\.1\)"):
        config(t_fixup=True)
