"""SubZero's directions, within two orthonormal bases."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.slope import Slope, assert_mean, estimates
from zolit.optim.blocks import trainable_weights
from zolit.optim.perturbation.low_rank.orthogonal_subspace import OrthogonalSubspace
from zolit.optim.randomness import Step


def test_subzero_estimates_the_projected_gradient() -> None:
    """E[ĝ] = UUᵀ G VVᵀ."""
    model, law = Slope(7, 9), OrthogonalSubspace(rank=3, refresh=10**6, scale=False)
    found = estimates(law, model, 1000)
    u, v = next(iter(law._bases.values()))
    torch.testing.assert_close(u.t() @ u, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(v.t() @ v, torch.eye(3), atol=1e-5, rtol=0)
    u, v = u.double(), v.double()
    assert_mean(found, u @ u.t() @ model.gradient @ v @ v.t())


def test_scaled_subzero_directions_are_as_long_as_dense_ones() -> None:
    law, model = OrthogonalSubspace(rank=4), Slope(30, 40)
    weight = trainable_weights(model)[0]
    law.begin_step(Step(0, 0))
    factors = law.factors(weight, list(range(200)))
    assert float(factors.squared_norms().mean()) == pytest.approx(1200, rel=0.1)
