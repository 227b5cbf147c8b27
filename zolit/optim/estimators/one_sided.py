"""Estimates by forward differences from the loss at θ."""

from __future__ import annotations

import torch

from zolit.errors import require
from zolit.optim.estimators.base import Estimate, Estimator, Evaluate


class OneSided(Estimator):
    """Computes Δᵢ = [L(θ + εuᵢ) - L(θ)] / ε and a = Δ / k (AGZO, arXiv 2601.17261, one-sided).

    A step costs k + 1 forwards, or k if another stage evaluated θ already. The bias is O(ε). That of central
    differences is O(ε²).

    Args:
        directions: k, the number of directions to average over.

    Raises:
        UserError: If k is not positive.
    """

    def __init__(self, directions: int = 1) -> None:
        require(directions >= 1, f"directions: a step needs at least one direction, not {directions}")
        self.num_directions = directions

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Estimates by forward differences; see ``Estimator.estimate``."""
        derivatives = forward_differences(evaluate, eps, self.num_directions)
        return Estimate(derivatives / self.num_directions, derivatives)


def forward_differences(evaluate: Evaluate, eps: float, count: int) -> torch.Tensor:
    """Computes [L(θ + εuᵢ) - L(θ)] / ε of all ``count`` directions, shape (count,), by one call of ``evaluate``."""
    center = torch.zeros(1, count, dtype=torch.float64)
    losses = evaluate(torch.cat([center, eps * torch.eye(count, dtype=torch.float64)]))
    return (losses[1:] - losses[0]) / eps
