"""An estimator for methods that train all weights by backpropagation."""

from __future__ import annotations

import torch

from zolit.optim.estimators.base import Estimate, Estimator, Evaluate


class NoProbes(Estimator):
    """Asks for no losses, and estimates a gradient of 0. Only an update by backpropagation then moves weights."""

    probes = False

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Returns zeros, shape (1,); see ``Estimator.estimate``."""
        zero = torch.zeros(1, dtype=torch.float64)
        return Estimate(zero, zero)
