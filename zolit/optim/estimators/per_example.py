"""Estimates one derivative for each example, along a separate direction, by two forwards of the batch."""

from __future__ import annotations

import torch

from zolit.optim.estimators.base import Estimate, Estimator, Evaluate


class PerExampleSPSA(Estimator):
    """Computes Δᵢ = [Lᵢ(θ + εuᵢ) - Lᵢ(θ - εuᵢ)] / 2ε and a = Δ / batch, where Lᵢ is the loss of example i.

    The estimate of the gradient of the mean loss is unbiased up to O(ε²), because E[Δᵢuᵢ] is the gradient of Lᵢ. A step
    costs two forwards.

    Args:
        normalize: Whether to divide by the root mean square of Δ. The weights then move by the same distance in every
            step.
    """

    per_example = True

    def __init__(self, normalize: bool = False) -> None:
        self._normalize = normalize

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Estimates by central differences, example by example; see ``Estimator.estimate``."""
        above, below = evaluate(torch.tensor([[eps], [-eps]], dtype=torch.float64))
        derivatives = (above - below) / (2.0 * eps)
        scale = float(derivatives.square().mean().sqrt()) if self._normalize else 1.0
        return Estimate(derivatives / (len(derivatives) * (scale or 1.0)), derivatives)
