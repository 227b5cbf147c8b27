"""Directions whose input factors lie in the span of an example's activations."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tests.helpers.directions import directions_of
from tests.helpers.draws import weight
from zolit import PerExample
from zolit.optim.perturbation.low_rank.activation_guided import ActivationGuided
from zolit.optim.perturbation.low_rank.low_rank import LowRank
from zolit.optim.randomness import Step, fold_in


def test_input_sides_fill_the_span_of_an_examples_tokens() -> None:
    """E[b bᵀ] is the projection onto the span, for tokens of any size, and of rank one for equal tokens."""
    torch.manual_seed(0)
    law, to, draws = ActivationGuided(500), weight(6, 16), 500
    tokens = torch.randn(1, 3, 16, dtype=torch.float64)
    sized = tokens * torch.tensor([1.0, 1e-3, 1e4], dtype=torch.float64).unsqueeze(1)
    alike = tokens[:, :1].expand(1, 3, 16)
    for activations in (tokens, sized, alike):
        law.begin_step(Step(0, 1))
        law.see_inputs(to, [1], activations, None)
        (found,) = law.factors(to, [1]).inputs.double()
        basis = torch.linalg.svd(activations[0]).Vh[: torch.linalg.matrix_rank(activations[0], rtol=1e-9)]
        projection = basis.T @ basis
        torch.testing.assert_close(found @ projection, found, atol=1e-5, rtol=0)
        errors = (found.T @ found / draws - projection) * draws**0.5
        # The variance is PᵢᵢPⱼⱼ + Pᵢⱼ², here at most .5. λ lowers the projection by some hundredths.
        assert float(projection.diagonal().max()) < 0.5
        assert float(errors.abs().max()) < 2.0
        assert float((found.T @ found / draws).trace()) == pytest.approx(len(basis), rel=0.15)


@pytest.mark.parametrize("rank", [1, 2])
def test_the_two_sides_share_no_number(rank: int) -> None:
    """Of 4,000 directions over a pool with 256 windows, some would have ρ = a if both were of one half."""
    law, to = ActivationGuided(rank), weight(16, 16)
    law.bind(nn.Module(), [to], [])
    law.begin_step(Step(0, 1))
    keys = [fold_in(1, key) for key in range(2000 * rank)]
    law.see_inputs(to, keys, torch.eye(16).expand(len(keys), 16, 16), None)
    factors = law.factors(to, keys)
    a, rho = (nn.functional.normalize(side, dim=2) for side in (factors.outputs, factors.inputs))
    cosines = (a @ rho.mT).flatten()
    assert float(cosines.abs().max()) < 0.95
    assert float(cosines.mean()) == pytest.approx(0.0, abs=5 / (16 * len(cosines)) ** 0.5)
    assert float(cosines.square().mean()) == pytest.approx(1 / 16, rel=0.1)


def test_padding_and_order_do_not_change_directions() -> None:
    law, to = ActivationGuided(2), weight(6, 32)
    activations = torch.randn(2, 3, 32)
    activations[0, 1] *= 1e4
    keys = [fold_in(1), fold_in(2)]
    law.begin_step(Step(0, 1))
    law.see_inputs(to, keys, activations, None)
    plain = law.factors(to, keys)
    for left in (True, False):
        padded = torch.full((2, 5, 32), 7.0)
        mask = torch.zeros(2, 5, dtype=torch.int64)
        columns = slice(2, 5) if left else slice(0, 3)
        padded[:, columns], mask[:, columns] = activations, 1
        places = (mask.cumsum(1) - 1).masked_fill(mask == 0, -1)
        law.begin_step(Step(0, 1))
        law.see_inputs(to, keys[::-1], padded.flip(0), places.flip(0))
        torch.testing.assert_close(law.factors(to, keys).inputs, plain.inputs)


@pytest.mark.parametrize("counted", [True, False])
def test_layers_of_the_same_activations_share_a_span_until_these_are_modified(counted: bool) -> None:
    query, key = weight(6, 32), weight(4, 32)
    with nullcontext() if counted else torch.inference_mode():
        activations, found = torch.randn(1, 3, 32), []
        for shared in (True, False):
            law = ActivationGuided()
            law.begin_step(Step(0, 1))
            law.see_inputs(query, [1], activations, None)
            span = law._span
            if not shared:
                law.begin_step(Step(0, 1))
            law.see_inputs(key, [2], activations.view(1, 3, 32), None)
            assert (law._span is span) == (shared and counted)
            found.append(law.factors(key, [2]).inputs)
        assert torch.equal(*found)
        law.begin_step(Step(0, 1))
        law.see_inputs(query, [1], activations, None)
        activations.copy_(torch.randn(1, 3, 32))
        law.see_inputs(key, [2], activations, None)
        rows = torch.cat([law.factors(key, [2]).inputs[0], activations[0]])
    assert int(torch.linalg.matrix_rank(rows, tol=1e-4)) == 3


def test_a_span_is_as_precise_under_autocast() -> None:
    torch.manual_seed(0)
    activations, found = torch.randn(1, 1, 64) + 0.05 * torch.randn(2, 30, 64), []
    for enabled in (False, True):
        directions = directions_of(PerExample(nn.Linear(64, 6, bias=False)), 1, [1, 2])
        (to,) = directions.weights
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            directions.see_inputs(to, 0, 2, activations, None)
        found.append(directions.factors(to).inputs)
    assert torch.equal(*found)


def test_the_first_activations_of_a_step_count_and_lookups_are_not_guided() -> None:
    law, to, keys = ActivationGuided(), weight(6, 32), [fold_in(1)]
    law.begin_step(Step(0, 1))
    law.see_inputs(to, keys, torch.randn(1, 3, 32), None)
    first = law.factors(to, keys).inputs.clone()
    law.see_inputs(to, keys, torch.randn(1, 3, 32), None)
    assert torch.equal(law.factors(to, keys).inputs, first)
    law.begin_step(Step(0, 2))
    law.see_inputs(to, keys, None, None)
    law.see_inputs(to, keys, torch.randn(1, 3, 32), None)
    unguided = LowRank()
    unguided.begin_step(Step(0, 2))
    expected = unguided.factors(to, keys)
    torch.testing.assert_close(law.factors(to, keys).inputs, 0.3 * expected.inputs)
    assert torch.equal(law.factors(to, keys).outputs, expected.outputs)
