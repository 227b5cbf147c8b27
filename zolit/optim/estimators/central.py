"""Estimates slope and curvature along one direction by central differences."""

from __future__ import annotations

import torch

from zolit.optim.estimators.base import Estimate, Estimator, Evaluate


class Central(Estimator):
    """Estimates the slope and the curvature of the loss along one direction (HiZOO, arXiv 2402.15173).

    Δ = [L(θ + εu) - L(θ - εu)] / 2ε and uᵀ∇²Lu ≈ [L(θ + εu) + L(θ - εu) - 2L(θ)] / ε². A step costs three forwards.
    """

    measures_curvatures = True

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Estimates slope and curvature; see ``Estimator.estimate``."""
        losses = evaluate(torch.tensor([[eps], [-eps], [0.0]], dtype=torch.float64))
        above, below, center = losses[0:1], losses[1:2], losses[2:3]
        derivatives = (above - below) / (2.0 * eps)
        return Estimate(derivatives, derivatives, (above + below - 2.0 * center) / eps**2)
