"""A derivative along every example's own direction, by two forwards of them all."""

from __future__ import annotations

import torch

from zolit.estimators.base import Estimate, Estimator, Evaluate


class PerExampleSPSA(Estimator):
    """Δᵢ = [Lᵢ(θ + εuᵢ) - Lᵢ(θ - εuᵢ)] / 2ε of example i's loss Lᵢ, and a = Δ / batch.

    Unbiased for the gradient of the mean loss up to O(ε²), as E[Δᵢuᵢ] is the gradient of Lᵢ.

    Args:
        normalize: Divide by the root mean square of the step's Δ: the weights move by the same distance every step.
    """

    directions = 0

    def __init__(self, normalize: bool = False) -> None:
        self._normalize = normalize

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Estimates by central differences; see the base class."""
        above, below = evaluate(torch.tensor([[eps], [-eps]], dtype=torch.float64))
        derivatives = (above - below) / (2.0 * eps)
        scale = float(derivatives.square().mean().sqrt()) if self._normalize else 1.0
        return Estimate(derivatives / (len(derivatives) * (scale or 1.0)), derivatives)
