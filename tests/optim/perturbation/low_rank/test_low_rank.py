"""Directions that are products of thin matrices. Their factors are windows of a pool."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.draws import weight, whole
from zolit.errors import UserError
from zolit.optim.buffers import CPU_CHUNK
from zolit.optim.perturbation.low_rank.low_rank import LowRank
from zolit.optim.randomness import Step, fold_in


@pytest.mark.parametrize("rank", [1, 3])
def test_a_matrix_has_the_rank_and_a_vector_is_dense(rank: int) -> None:
    law = LowRank(rank)
    law.begin_step(Step(0, 1))
    assert int(torch.linalg.matrix_rank(whole(law, weight(7, 5), fold_in(1)))) == rank
    vector = whole(law, weight(50), fold_in(2))
    assert len(vector.unique()) == 50


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("shape", [(3, 4), (5,)])
def test_covariance_is_the_identity(rank: int, shape: tuple[int, ...]) -> None:
    """Over 20,000 keys. Entries of a covariance of products of normal numbers have a variance of up to 8."""
    law, to, count = LowRank(rank), weight(*shape), 20_000
    pool = law._pools.of(to)
    pool.narrow.normal_(generator=torch.Generator().manual_seed(0))
    draws = torch.stack([whole(law, to, fold_in(3, step)).flatten() for step in range(count)])
    covariance = draws.T @ draws / count
    limit = 5 * (8 / count) ** 0.5
    torch.testing.assert_close(covariance, torch.eye(to.parameter.numel()), rtol=0, atol=limit)
    assert float(draws.mean(0).abs().max()) < 5 / count**0.5


def test_products_are_those_of_the_pieces() -> None:
    """Σ cᵢUᵢ by one thin product, and the squared norms, equal those of the pieces that are drawn."""
    law, to = LowRank(2), weight(700, 1000)
    law.begin_step(Step(0, 4))
    keys, coefficients = [fold_in(1), fold_in(2), fold_in(3)], [0.5, -2.0, 1.0]
    directions = [whole(law, to, key) for key in keys]
    expected = sum(c * u for c, u in zip(coefficients, directions, strict=True))
    factors, sums = law.factors(to, keys), torch.zeros(700_000)
    assert len(law.chunks(to)) > 1
    for start, stop in law.chunks(to):
        factors.add_to(sums[start:stop], start, stop, torch.tensor(coefficients))
    torch.testing.assert_close(sums.view(700, 1000), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        factors.squared_norms(), torch.stack([u.square().sum() for u in directions]), rtol=1e-4, atol=0
    )


def test_rows_longer_than_a_piece() -> None:
    law, to = LowRank(), weight(2, CPU_CHUNK // 4 + 8)
    law.begin_step(Step(0, 4))
    key = fold_in(9)
    factors = law.factors(to, [key])
    expected = factors.scales[0, 0] * torch.outer(factors.outputs[0, 0], factors.inputs[0, 0])
    sums = torch.zeros(to.parameter.numel())
    for start in range(0, sums.numel(), 1 << 16):
        stop = min(start + (1 << 16), (start // expected.shape[1] + 1) * expected.shape[1])
        factors.add_to(sums[start:stop], start, stop)
    torch.testing.assert_close(sums[: 1 << 16], expected.flatten()[: 1 << 16])


def test_a_side_longer_than_the_pool_is_refused() -> None:
    law = LowRank()
    law.begin_step(Step(0, 4))
    with pytest.raises(UserError, match="a side of 300000 is more than the 262144"):
        law.factors(weight(300_000, 1), [1])


def test_directions_that_share_windows_differ_in_sign_half_the_time() -> None:
    """Otherwise the directions of two weights with the same windows would be equal."""
    law = LowRank()
    law.begin_step(Step(0, 1))
    signs = law.factors(weight(2, 3), [fold_in(7, key) for key in range(400)]).scales
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.25
