"""Combines several probed directions into one direction, and estimates the derivative along it."""

from __future__ import annotations

import torch

from zolit.errors import require
from zolit.optim.estimators.base import Estimate, Estimator, Evaluate


class Guiding(Estimator):
    """Applies two-point SPSA to v = mean of the best uᵢ - mean of the others (MeZO-GV, arXiv 2601.04710).

    M probes measure L(θ + εuᵢ). The best ⌊αM⌋ directions have the lowest losses. Then g = [L(θ + εv) - L(θ - εv)] / 2ε,
    and the weights move along g·v. A step costs M + 2 forwards.

    Args:
        directions: M, the number of probed directions.
        share: α, the share of the best directions, in (0, 1).

    Raises:
        UserError: If M is below 2, or if the best ⌊αM⌋ directions are none or all of them.
    """

    def __init__(self, directions: int = 4, share: float = 0.5) -> None:
        require(directions >= 2, f"directions: a guiding vector needs at least 2 probes, not {directions}")
        self.num_directions = directions
        self._best = int(share * directions)
        require(
            0 < self._best < directions,
            f"share: {share} of {directions} directions must be at least 1 and less than all of them",
        )

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Probes the directions, combines them, and estimates along the combination; see ``Estimator.estimate``."""
        losses = evaluate(eps * torch.eye(self.num_directions, dtype=torch.float64))
        order = losses.argsort(stable=True)
        combination = torch.full_like(losses, -1.0 / (self.num_directions - self._best))
        combination[order[: self._best]] = 1.0 / self._best
        return along(combination, evaluate, eps)


class Greedy(Estimator):
    """Applies two-point SPSA to the best of M directions: the lowest L(θ + εuᵢ) (MeZO-Greedy, arXiv 2601.04710).

    A step costs M + 2 forwards.

    Args:
        directions: M, the number of probed directions.

    Raises:
        UserError: If M is below 2.
    """

    def __init__(self, directions: int = 4) -> None:
        require(directions >= 2, f"directions: a choice needs at least 2 probes, not {directions}")
        self.num_directions = directions

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Probes the directions, chooses the best, and estimates along it; see ``Estimator.estimate``."""
        losses = evaluate(eps * torch.eye(self.num_directions, dtype=torch.float64))
        chosen = torch.zeros_like(losses)
        chosen[losses.argmin()] = 1.0
        return along(chosen, evaluate, eps)


def along(combination: torch.Tensor, evaluate: Evaluate, eps: float) -> Estimate:
    """Estimates the derivative along v = Σ wᵢuᵢ by central differences. Called once a step, after the probes.

    Args:
        combination: w, shape (k,).
        evaluate: See ``Estimator.estimate``.
        eps: ε, the probe radius.

    Returns:
        The coefficients a = g·w. The derivatives along single directions are gw/‖w‖²: these hold if the loss changes
        along v only.
    """
    above, below = evaluate(eps * torch.stack([combination, -combination]))
    slope = (above - below) / (2.0 * eps)
    return Estimate(slope * combination, slope * combination / combination.square().sum())
