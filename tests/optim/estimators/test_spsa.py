from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zolit import UserError
from zolit.optim.estimators.spsa import SPSA


@pytest.mark.parametrize("directions", [1, 2, 5])
def test_central_differences_are_exact_on_a_quadratic(directions: int) -> None:
    """f(c) = ⟨b, c⟩ + cᵀAc / 2 over the coefficients: the derivatives at 0 are b for every ε."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(directions, generator=generator, dtype=torch.float64)
    half = torch.randn(directions, directions, generator=generator, dtype=torch.float64)
    calls: list[Tensor] = []

    def evaluate(queries: Tensor) -> Tensor:
        calls.append(queries)
        return queries @ slope + ((queries @ half) ** 2).sum(1) / 2

    estimate = SPSA(directions).estimate(evaluate, 0.5)
    assert torch.allclose(estimate.derivatives, slope)
    assert torch.allclose(estimate.coefficients, slope / directions)
    (queries,) = calls
    assert queries.shape == (2 * directions, directions)
    assert torch.equal(queries[0::2], 0.5 * torch.eye(directions, dtype=torch.float64))
    assert torch.equal(queries[1::2], -queries[0::2])


def test_error_is_of_second_order_in_eps() -> None:
    """f(c) = c + c³: the difference quotient is 1 + ε²."""
    for eps in (1e-1, 1e-2):
        estimate = SPSA().estimate(lambda queries: (queries + queries**3)[:, 0], eps)
        assert float(estimate.derivatives) == pytest.approx(1 + eps**2, rel=1e-12)


@pytest.mark.parametrize("directions", [0, -1])
def test_directions_must_be_positive(directions: int) -> None:
    with pytest.raises(UserError, match="directions"):
        SPSA(directions)
