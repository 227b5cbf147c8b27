"""Estimates by central differences along one direction, or on average over several."""

from __future__ import annotations

import torch

from zolit.errors import require
from zolit.optim.estimators.base import Estimate, Estimator, Evaluate


class SPSA(Estimator):
    """Computes Δᵢ = [L(θ + εuᵢ) - L(θ - εuᵢ)] / 2ε and a = Δ / q: two-point SPSA, and n-SPSA for several directions.

    Sources: Spall 1992; MeZO, arXiv 2305.17333, Definition 1. A step costs 2q forwards. The estimate of the gradient is
    unbiased up to O(ε²).

    Args:
        directions: q, the number of directions to average over.

    Raises:
        UserError: If q is not positive.
    """

    def __init__(self, directions: int = 1) -> None:
        require(directions >= 1, f"directions: a step needs at least one direction, not {directions}")
        self.num_directions = directions

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Estimates by central differences; see ``Estimator.estimate``."""
        steps = eps * torch.eye(self.num_directions, dtype=torch.float64)
        losses = evaluate(torch.stack([steps, -steps], dim=1).flatten(0, 1)).view(self.num_directions, 2)
        derivatives = (losses[:, 0] - losses[:, 1]) / (2.0 * eps)
        return Estimate(derivatives / self.num_directions, derivatives)
