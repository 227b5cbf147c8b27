"""The two-point estimate, and its average over several directions."""

from __future__ import annotations

import torch

from zolit.errors import require
from zolit.estimators.base import Estimate, Estimator, Evaluate


class SPSA(Estimator):
    """Δᵢ = [L(θ + εuᵢ) - L(θ - εuᵢ)] / 2ε and a = Δ / q (Spall 1992; MeZO, arXiv 2305.17333, Definition 1; n-SPSA).

    Costs 2q forwards a step. Unbiased for the gradient up to O(ε²).

    Args:
        directions: q, the number of directions averaged over.

    Raises:
        UserError: If q is not positive.
    """

    def __init__(self, directions: int = 1) -> None:
        require(directions >= 1, f"directions: a step needs at least one direction, not {directions}")
        self.directions = directions

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Estimates by central differences; see the base class."""
        steps = eps * torch.eye(self.directions, dtype=torch.float64)
        losses = evaluate(torch.stack([steps, -steps], dim=1).flatten(0, 1)).view(self.directions, 2)
        derivatives = (losses[:, 0] - losses[:, 1]) / (2.0 * eps)
        return Estimate(derivatives / self.directions, derivatives)
