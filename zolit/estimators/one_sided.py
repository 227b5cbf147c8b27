"""Forward differences from the loss at θ."""

from __future__ import annotations

import torch

from zolit.errors import require
from zolit.estimators.base import Estimate, Estimator, Evaluate


class OneSided(Estimator):
    """Δᵢ = [L(θ + εuᵢ) - L(θ)] / ε and a = Δ / k (AGZO, arXiv 2601.17261, one-sided).

    Costs k + 1 forwards a step, or k where another room has looked at θ already. Biased by O(ε), where central
    differences are by O(ε²).

    Args:
        directions: k, the number of directions averaged over.

    Raises:
        UserError: If k is not positive.
    """

    def __init__(self, directions: int = 1) -> None:
        require(directions >= 1, f"directions: a step needs at least one direction, not {directions}")
        self.directions = directions

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Estimates by forward differences; see the base class."""
        derivatives = forward_differences(evaluate, eps, self.directions)
        return Estimate(derivatives / self.directions, derivatives)


def forward_differences(evaluate: Evaluate, eps: float, count: int) -> torch.Tensor:
    """Returns [L(θ + εuᵢ) - L(θ)] / ε of the first directions, shape (count,), by one call of ``evaluate``."""
    center = torch.zeros(1, count, dtype=torch.float64)
    losses = evaluate(torch.cat([center, eps * torch.eye(count, dtype=torch.float64)]))
    return (losses[1:] - losses[0]) / eps
