"""Central differences that measure curvature as well."""

from __future__ import annotations

import torch

from zolit.estimators.base import Estimate, Estimator, Evaluate


class Central(Estimator):
    """Δ = [L(θ + εu) - L(θ - εu)] / 2ε and uᵀ∇²Lu ≈ [L(θ + εu) + L(θ - εu) - 2L(θ)] / ε² (HiZOO, arXiv 2402.15173).

    Costs three forwards a step.
    """

    directions = 1

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Estimates slope and curvature; see the base class."""
        losses = evaluate(torch.tensor([[eps], [-eps], [0.0]], dtype=torch.float64))
        above, below, center = losses[0:1], losses[1:2], losses[2:3]
        derivatives = (above - below) / (2.0 * eps)
        return Estimate(derivatives, derivatives, (above + below - 2.0 * center) / eps**2)
