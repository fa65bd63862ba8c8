"""AKT: fading by the formula of the paper, difficulties as in the Rasch model, and what keeps them small."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dkt_ray.errors import ConfigError
from dkt_ray.features.batch import PADDING, UNKNOWN_ID
from dkt_ray.features.collate import Scale
from dkt_ray.models.akt import Akt, AktConfig, MonotonicAttention, RaschEmbedding
from dkt_ray.models.catalog import CATALOG
from dkt_ray.models.network import Inputs
from dkt_ray.models.visible import fading, read_past
from dkt_ray.training.fit import fit
from tests.contract import world as w
from tests.sequence_batches import random_batch, small_network, without_numbers

T, VISIBLE = 6, [[0, 3, 6], [6, 1, 4]]


def attention(heads: int = 2, **settings: object) -> MonotonicAttention:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MonotonicAttention(AktConfig.model_validate({"width": 8, "heads": heads} | settings)).eval()


def distance(scores: Tensor, t: int, j: int) -> float:
    """|t - j| times the share of attention that rows j + 1 to t get, of what rows 0 to t get (section 4.2)."""
    share = torch.softmax(scores[: t + 1].double(), 0)
    return (t - j) * float(share[j + 1 :].sum())


def test_fading_is_the_formula_of_the_paper() -> None:
    scores = torch.randn(1, 2, 7, 7, generator=torch.Generator().manual_seed(1))
    speed, row = torch.tensor([0.3, 1.5]), torch.arange(7)
    steps = row[:, None] - row
    left = fading(scores, steps >= 0, steps, speed)
    for head in range(2):
        for t in range(7):
            for j in range(t + 1):
                expected = math.exp(-float(speed[head]) * math.sqrt(distance(scores[0, head, t], t, j)))
                assert float(left[0, head, t, j]) == pytest.approx(expected, abs=1e-5)


@torch.inference_mode()
def test_of_rows_that_are_alike_the_later_ones_count_more_and_with_simple_all_the_same() -> None:
    rows, row = torch.ones(1, 2, 8, 8).split([7, 1], -2)
    values, own = torch.eye(8).expand(1, 2, 8, 8).split([7, 1], -2)  # what is read are the weights
    monotonic, simple = (
        read_past(row, rows, values, torch.tensor([[7]]), (row, own), speed)[0, :, 0]
        for speed in (F.softplus(attention().speed), None)
    )
    assert (monotonic.diff() > 1e-4).all()
    torch.testing.assert_close(monotonic.sum(-1), torch.ones(2))
    torch.testing.assert_close(simple, torch.full((2, 8), 1 / 8))
    assert attention(simple=True).speed is None


@pytest.mark.parametrize("simple", [False, True])
@torch.inference_mode()
def test_a_target_reads_what_a_past_row_in_its_place_reads(simple: bool) -> None:
    tokens = torch.randn(2, T, 8, generator=torch.Generator().manual_seed(3))
    visible = torch.tensor([[0, 2, 5], [5, 1, 3]])
    asked = tokens.gather(1, visible[..., None].expand(-1, -1, 8))
    read = attention(simple=simple)(torch.cat([tokens, asked], 1), visible)
    torch.testing.assert_close(read[:, T:], read[:, :T].gather(1, visible[..., None].expand(-1, -1, 8)))


def test_no_gradient_flows_through_the_distance() -> None:
    scores = torch.randn(1, 1, 4, 4, requires_grad=True)
    speed = torch.ones(1, requires_grad=True)
    steps = torch.arange(4)[:, None] - torch.arange(4)
    fading(scores, steps >= 0, steps, speed).sum().backward()
    assert scores.grad is None
    assert speed.grad is not None
    assert speed.grad < 0
    assert attention(heads=4).speed is not None
    assert (F.softplus(attention(heads=4).speed) > 0).all()


@torch.inference_mode()
def test_an_unknown_question_has_the_mean_of_the_known_difficulties() -> None:
    rasch = RaschEmbedding(6, 9, 4)
    rasch.difficulty.weight[UNKNOWN_ID:] = torch.tensor([[50.0], [1.0], [-2.0], [0.5], [4.5]])
    found = rasch.difficulties(torch.tensor([[UNKNOWN_ID, 2, 5, PADDING]]))
    assert found[0, :, 0].tolist() == [1.0, 1.0, 4.5, 0.0]
    assert RaschEmbedding(2, 9, 4).difficulties(torch.tensor([[UNKNOWN_ID]])).item() == 0


@torch.inference_mode()
def test_a_question_and_an_answer_are_points_on_the_lines_of_their_concepts() -> None:
    rasch = RaschEmbedding(6, 9, 4)
    mu, concepts = torch.tensor([[[2.0], [-1.0], [3.0]]]), torch.tensor([[[2, 0], [2, 5], [0, 0]]])
    c, d = rasch.concept.weight.chunk(2, -1)
    expected = [c[2] + 2 * d[2], (c[2] + c[5]) / 2 - (d[2] + d[5]) / 2, torch.zeros(4)]
    torch.testing.assert_close(rasch.question(mu, concepts)[0], torch.stack(expected))
    wrong, right = (rasch.answer(mu, concepts, torch.full((1, 3), answer))[0] for answer in (1, 2))
    e, f = rasch.answered.weight.chunk(2, -1)
    torch.testing.assert_close(right[0], e[2 * 4 + 2] + 2 * f[2 * 4 + 2])
    assert (wrong[:2] != right[:2]).all()
    assert not wrong[2].any()


def test_the_penalty_is_the_mean_square_of_the_difficulties_of_targets_that_count() -> None:
    akt, batch = small_network(Akt, question_l2=0.5), random_batch(T, VISIBLE)
    with torch.no_grad():
        akt.rasch.difficulty.weight.copy_(torch.arange(9.0)[:, None])
    counts = torch.tensor([[True, False, True], [False, False, True]])
    penalty = akt.penalty(batch, counts)
    assert penalty.item() == pytest.approx(0.5 * batch.target_ids[..., 0][counts].float().square().mean().item())
    assert akt.penalty(batch, counts & False).item() == 0
    penalty.backward()
    assert akt.rasch.difficulty.weight.grad.any()


def test_training_heeds_the_penalty() -> None:
    data = w.World.of(w.students(30, seed=2)).data
    sizes = []
    for weight in (0.0, 10.0):
        settings = w.tiny(CATALOG["akt"], epochs=2, question_l2=weight, embedding_rate=1.0)
        difficulty = fit("akt", settings, data, iterations=2).model.rasch.difficulty.weight
        sizes.append(float(difficulty.detach().square().mean()))
    assert sizes[1] < sizes[0] / 10


def test_without_questions_there_are_no_difficulties() -> None:
    config = AktConfig.model_validate({"width": 8, "embeddings": {"test": 4}})
    akt = Akt(config, Inputs({"test": 9, "concepts": 9}, Scale(*torch.ones(2, 5).numpy())))
    batch = random_batch(T, VISIBLE)
    assert not akt.difficulties(batch.past_ids).any()
    assert not akt.penalty(batch, batch.rows >= 0)


@pytest.mark.parametrize("numbers", [True, False])
@pytest.mark.parametrize("simple", [True, False])
def test_every_weight_is_trained(simple: bool, numbers: bool) -> None:
    akt, batch = small_network(Akt, simple=simple, numbers=numbers), random_batch(T, VISIBLE)
    akt(batch if numbers else without_numbers(batch)).square().sum().backward()
    assert [name for name, p in akt.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="width 8 is not a multiple of heads 3"):
        small_network(Akt, heads=3)
    with pytest.raises(ConfigError, match="question_l2"):
        small_network(Akt, question_l2=-1)
