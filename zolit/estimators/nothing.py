"""No estimate at all."""

from __future__ import annotations

import torch

from zolit.estimators.base import Estimate, Estimator, Evaluate


class NoProbes(Estimator):
    """Asks for nothing and moves nothing: what moves are the weights that an update trains by backpropagation."""

    directions = 1

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Returns zeros; see the base class."""
        zero = torch.zeros(1, dtype=torch.float64)
        return Estimate(zero, zero)
