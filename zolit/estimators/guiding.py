"""A direction made of those that turned out well, less those that did not."""

from __future__ import annotations

import torch

from zolit.errors import require
from zolit.estimators.base import Estimate, Estimator, Evaluate


class Guiding(Estimator):
    """v = mean of the best uᵢ - mean of the others, gone along by two-point SPSA (MeZO-GV, arXiv 2601.04710).

    M probes L(θ + εuᵢ) are sorted; the best ⌊αM⌋ have the lowest losses. Then g = [L(θ + εv) - L(θ - εv)] / 2ε and the
    weights move along g·v. Costs M + 2 forwards.

    Args:
        directions: M.
        share: α, in (0, 1).

    Raises:
        UserError: If α leaves no best or no other direction.
    """

    def __init__(self, directions: int = 4, share: float = 0.5) -> None:
        require(directions >= 2, f"directions: a guiding vector needs at least 2 probes, not {directions}")
        self.directions = directions
        self._best = int(share * directions)
        require(
            0 < self._best < directions,
            f"share: {share} of {directions} directions must be at least 1 and less than all of them",
        )

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Probes, combines, and estimates along the combination; see the base class."""
        losses = evaluate(eps * torch.eye(self.directions, dtype=torch.float64))
        order = losses.argsort(stable=True)
        combination = torch.full_like(losses, -1.0 / (self.directions - self._best))
        combination[order[: self._best]] = 1.0 / self._best
        return along(combination, evaluate, eps)


class Greedy(Estimator):
    """Two-point SPSA along the one of M directions with the lowest L(θ + εuᵢ) (MeZO-Greedy, arXiv 2601.04710).

    Costs M + 2 forwards.

    Args:
        directions: M.

    Raises:
        UserError: If there is no choice between them.
    """

    def __init__(self, directions: int = 4) -> None:
        require(directions >= 2, f"directions: a choice needs at least 2 probes, not {directions}")
        self.directions = directions

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Probes, chooses, and estimates along the choice; see the base class."""
        losses = evaluate(eps * torch.eye(self.directions, dtype=torch.float64))
        chosen = torch.zeros_like(losses)
        chosen[losses.argmin()] = 1.0
        return along(chosen, evaluate, eps)


def along(combination: torch.Tensor, evaluate: Evaluate, eps: float) -> Estimate:
    """Estimates by central differences along v = Σ wᵢuᵢ.

    Args:
        combination: w, shape (k,).
        evaluate: See ``Estimator.estimate``.
        eps: ε.

    Returns:
        a = g·w; the derivatives of single directions that follow from g if v were all that matters, gw/‖w‖².
    """
    above, below = evaluate(eps * torch.stack([combination, -combination]))
    slope = (above - below) / (2.0 * eps)
    return Estimate(slope * combination, slope * combination / combination.square().sum())
