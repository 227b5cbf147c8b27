from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from zolit.blocks import Weight
from zolit.errors import UserError
from zolit.hashing import mix, name_key
from zolit.perturbation import ActivationGuided, LowRank
from zolit.scratch import CHUNK


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> Weight:
    return Weight("w", nn.Parameter(torch.zeros(shape, dtype=dtype)), name_key("w"))


def whole(law: LowRank, to: Weight, key: int) -> Tensor:
    pieces = [values.clone() * f for values, f in (law.draw(to, key, *ends) for ends in law.ranges(to))]
    return torch.cat(pieces).view(to.parameter.shape)


@pytest.mark.parametrize("rank", [1, 3])
def test_is_of_its_rank_and_a_vector_is_dense(rank: int) -> None:
    law = LowRank(rank)
    law.begin(0, 1)
    assert int(torch.linalg.matrix_rank(whole(law, weight(7, 5), mix(1)))) == rank
    vector = whole(law, weight(50), mix(2))
    assert len(vector.unique()) == 50


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("shape", [(3, 4), (5,)])
def test_covariance_is_the_identity(rank: int, shape: tuple[int, ...]) -> None:
    """Over 20,000 steps and keys; entries of a covariance of products of normal numbers have a variance of up to 8."""
    law, to, count = LowRank(rank), weight(*shape), 20_000
    pool = law._pools.of(to)
    pool.narrow.normal_(generator=torch.Generator().manual_seed(0))
    draws = torch.stack([whole(law, to, mix(3, step)).flatten() for step in range(count)])
    covariance = draws.T @ draws / count
    limit = 5 * (8 / count) ** 0.5
    torch.testing.assert_close(covariance, torch.eye(to.parameter.numel()), rtol=0, atol=limit)
    assert float(draws.mean(0).abs().max()) < 5 / count**0.5


def test_products_are_those_of_the_pieces() -> None:
    """Σ cᵢUᵢ by one thin product equals the sum of what is drawn, piece by piece, and so do the energies."""
    law, to = LowRank(2), weight(700, 1000)
    law.begin(0, 4)
    keys, coefficients = [mix(1), mix(2), mix(3)], [0.5, -2.0, 1.0]
    directions = [whole(law, to, key) for key in keys]
    expected = sum(c * u for c, u in zip(coefficients, directions, strict=True))
    factors, sums = law.factors(to, keys), torch.zeros(700_000)
    assert len(law.ranges(to)) > 1
    for start, stop in law.ranges(to):
        factors.add(sums[start:stop], start, stop, torch.tensor(coefficients))
    torch.testing.assert_close(sums.view(700, 1000), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        factors.energies(), torch.stack([u.square().sum() for u in directions]), rtol=1e-4, atol=0
    )


def test_rows_longer_than_a_piece() -> None:
    law, to = LowRank(), weight(2, CHUNK // 4 + 8)
    law.begin(0, 4)
    key = mix(9)
    factors = law.factors(to, [key])
    expected = factors.scales[0, 0] * torch.outer(factors.outputs[0, 0], factors.inputs[0, 0])
    sums = torch.zeros(to.parameter.numel())
    for start in range(0, sums.numel(), 1 << 16):
        stop = min(start + (1 << 16), (start // expected.shape[1] + 1) * expected.shape[1])
        factors.add(sums[start:stop], start, stop)
    torch.testing.assert_close(sums[: 1 << 16], expected.flatten()[: 1 << 16])


def test_a_side_longer_than_the_pool_is_refused() -> None:
    law = LowRank()
    law.begin(0, 4)
    with pytest.raises(UserError, match="a side of 300000 is more than the 262144"):
        law.factors(weight(300_000, 1), [1])


def test_input_sides_fill_the_span_of_an_examples_tokens() -> None:
    """E[b bᵀ] is the projection onto that span, whatever the tokens' sizes, and of rank one where they are alike."""
    torch.manual_seed(0)
    law, to, draws = ActivationGuided(500), weight(6, 16), 500
    tokens = torch.randn(1, 3, 16, dtype=torch.float64)
    sized = tokens * torch.tensor([1.0, 1e-3, 1e4], dtype=torch.float64).unsqueeze(1)
    alike = tokens[:, :1].expand(1, 3, 16)
    for activations in (tokens, sized, alike):
        law.begin(0, 1)
        law.guide(to, [1], activations, None)
        (found,) = law.factors(to, [1]).inputs.double()
        basis = torch.linalg.svd(activations[0]).Vh[: torch.linalg.matrix_rank(activations[0], rtol=1e-9)]
        projection = basis.T @ basis
        torch.testing.assert_close(found @ projection, found, atol=1e-5, rtol=0)
        errors = (found.T @ found / draws - projection) * draws**0.5
        # Of variance PᵢᵢPⱼⱼ + Pᵢⱼ², .5 at most here; λ takes some hundredths off the projection.
        assert float(projection.diagonal().max()) < 0.5
        assert float(errors.abs().max()) < 2.0
        assert float((found.T @ found / draws).trace()) == pytest.approx(len(basis), rel=0.15)


def test_directions_do_not_see_padding_and_order() -> None:
    law, to = ActivationGuided(2), weight(6, 32)
    activations = torch.randn(2, 3, 32)
    activations[0, 1] *= 1e4
    keys = [mix(1), mix(2)]
    law.begin(0, 1)
    law.guide(to, keys, activations, None)
    plain = law.factors(to, keys)
    for left in (True, False):
        padded = torch.full((2, 5, 32), 7.0)
        mask = torch.zeros(2, 5, dtype=torch.int64)
        columns = slice(2, 5) if left else slice(0, 3)
        padded[:, columns], mask[:, columns] = activations, 1
        places = (mask.cumsum(1) - 1).masked_fill(mask == 0, -1)
        law.begin(0, 1)
        law.guide(to, keys[::-1], padded.flip(0), places.flip(0))
        torch.testing.assert_close(law.factors(to, keys).inputs, plain.inputs)


@pytest.mark.parametrize("counted", [True, False])
def test_layers_that_read_the_same_activations_share_a_span_until_they_are_written_to(counted: bool) -> None:
    query, key = weight(6, 32), weight(4, 32)
    with nullcontext() if counted else torch.inference_mode():
        activations, found = torch.randn(1, 3, 32), []
        for shared in (True, False):
            law = ActivationGuided()
            law.begin(0, 1)
            law.guide(query, [1], activations, None)
            span = law._span
            if not shared:
                law.begin(0, 1)
            law.guide(key, [2], activations.view(1, 3, 32), None)
            assert (law._span is span) == (shared and counted)
            found.append(law.factors(key, [2]).inputs)
        assert torch.equal(*found)
        law.begin(0, 1)
        law.guide(query, [1], activations, None)
        activations.copy_(torch.randn(1, 3, 32))
        law.guide(key, [2], activations, None)
        rows = torch.cat([law.factors(key, [2]).inputs[0], activations[0]])
    assert int(torch.linalg.matrix_rank(rows, tol=1e-4)) == 3


def test_a_span_is_as_precise_under_autocast() -> None:
    torch.manual_seed(0)
    to, activations, found = weight(6, 64), torch.randn(1, 1, 64) + 0.05 * torch.randn(2, 30, 64), []
    for enabled in (False, True):
        law = ActivationGuided()
        law.begin(0, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            law.guide(to, [1, 2], activations, None)
        found.append(law.factors(to, [1, 2]).inputs)
    assert torch.equal(*found)


def test_the_first_activations_of_a_step_count_and_lookups_have_none() -> None:
    law, to, keys = ActivationGuided(), weight(6, 32), [mix(1)]
    law.begin(0, 1)
    law.guide(to, keys, torch.randn(1, 3, 32), None)
    first = law.factors(to, keys).inputs.clone()
    law.guide(to, keys, torch.randn(1, 3, 32), None)
    assert torch.equal(law.factors(to, keys).inputs, first)
    law.begin(0, 2)
    law.guide(to, keys, None, None)
    law.guide(to, keys, torch.randn(1, 3, 32), None)
    unguided = LowRank()
    unguided.begin(0, 2)
    expected = unguided.factors(to, keys)
    torch.testing.assert_close(law.factors(to, keys).inputs, 0.3 * expected.inputs)
    assert torch.equal(law.factors(to, keys).outputs, expected.outputs)


def test_directions_that_share_windows_differ_in_sign_half_the_time() -> None:
    """Else the directions of two weights whose windows coincide would go together, step for step."""
    law = LowRank()
    law.begin(0, 1)
    signs = law.factors(weight(2, 3), [mix(7, key) for key in range(400)]).scales
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.25
