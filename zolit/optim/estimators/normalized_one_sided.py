"""Estimates by one-sided probes, normalized by the standard deviation of their losses."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from zolit.errors import require, require_one_of
from zolit.optim.estimators.base import Estimate, Estimator, Evaluate


class NormalizedOneSided(Estimator):
    """Computes a = [L(θ + εuᵢ) - L(θ)] / (εNσ), σ the standard deviation of the N losses (FZOO, arXiv 2506.09034).

    The length of a step does not depend on the scale of the loss. Where losses differ much, the step is small. If all
    losses are equal, the weights do not move. A step costs N + 1 forwards.

    The published code differs in three points. It has no factor 1/ε. σ is the standard deviation of the population.
    After the first step it makes only N/2 new probes, and computes σ from their losses and those of the step before
    (our reading of the code). A step then costs N/2 + 1 forwards.

    Args:
        directions: N, at least 2; an even number for the variant ``code``.
        variant: paper or code.

    Raises:
        UserError: If N is out of its range, or if the variant is unknown.
    """

    def __init__(self, directions: int = 8, variant: Literal["paper", "code"] = "paper") -> None:
        require(directions >= 2, f"directions: a spread needs at least 2 probes, not {directions}")
        require_one_of("variant", variant, ("paper", "code"))
        self._as_code = variant == "code"
        require(
            not self._as_code or directions % 2 == 0, f"directions: must be even for variant code, not {directions}"
        )
        self.num_directions = directions
        self._last: list[float] = []

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Probes the directions, and normalizes by σ; see ``Estimator.estimate``."""
        count = self.num_directions
        asked = count // 2 if self._as_code and self._last else count
        queries = eps * torch.eye(count, dtype=torch.float64)[:asked]
        losses = evaluate(torch.cat([torch.zeros(1, count, dtype=torch.float64), queries]))
        differences = torch.zeros(count, dtype=torch.float64)
        differences[:asked] = losses[1:] - losses[0]
        spread_over = torch.cat([losses[1:], torch.tensor(self._last[: count - asked], dtype=torch.float64)])
        self._last = losses[1 : 1 + count // 2].tolist() if self._as_code else []
        return Estimate(self._coefficients(differences, spread_over, eps, asked), differences / eps)

    def _coefficients(self, differences: Tensor, losses: Tensor, eps: float, asked: int) -> Tensor:
        spread = float(losses.std(correction=0 if self._as_code else 1))
        scale = asked * spread * (1.0 if self._as_code else eps)
        return differences / scale if spread > 0.0 else torch.zeros_like(differences)

    def state_dict(self) -> dict[str, Any]:
        """Returns the losses from which the next step computes σ too; see ``Stage.state_dict``."""
        return {"losses": list(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores these losses; see ``Stage.load_state_dict``."""
        self._last = list(state["losses"])
