"""One-sided probes whose step is normalized by the spread of their losses."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from zolit.errors import require, require_one_of
from zolit.estimators.base import Estimate, Estimator, Evaluate


class NormalizedOneSided(Estimator):
    """a = [L(θ + εuᵢ) - L(θ)] / (εNσ), σ the standard deviation of the N losses (FZOO, arXiv 2506.09034).

    The step's length does not depend on the loss's scale: small where losses differ much. Costs N + 1 forwards. Where
    all losses are equal nothing moves.

    The published code differs: no 1/ε, σ the population's deviation and, after the first step, N/2 new probes only,
    whose losses stand beside those of the step before where σ is formed (our reading of it): N/2 + 1 forwards.

    Args:
        directions: N, at least 2; even for the code's variant.
        variant: paper or code.

    Raises:
        UserError: If N is out of its range or the variant unknown.
    """

    def __init__(self, directions: int = 8, variant: Literal["paper", "code"] = "paper") -> None:
        require(directions >= 2, f"directions: a spread needs at least 2 probes, not {directions}")
        require_one_of("variant", variant, ("paper", "code"))
        self._as_code = variant == "code"
        require(
            not self._as_code or directions % 2 == 0, f"directions: must be even for variant code, not {directions}"
        )
        self.directions = directions
        self._last: list[float] = []

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Probes and normalizes; see the base class."""
        count = self.directions
        asked = count // 2 if self._as_code and self._last else count
        queries = eps * torch.eye(count, dtype=torch.float64)[:asked]
        losses = evaluate(torch.cat([torch.zeros(1, count, dtype=torch.float64), queries]))
        differences = torch.zeros(count, dtype=torch.float64)
        differences[:asked] = losses[1:] - losses[0]
        seen = torch.cat([losses[1:], torch.tensor(self._last[: count - asked], dtype=torch.float64)])
        self._last = losses[1 : 1 + count // 2].tolist() if self._as_code else []
        return Estimate(self._coefficients(differences, seen, eps, asked), differences / eps)

    def _coefficients(self, differences: Tensor, losses: Tensor, eps: float, asked: int) -> Tensor:
        spread = float(losses.std(correction=0 if self._as_code else 1))
        scale = asked * spread * (1.0 if self._as_code else eps)
        return differences / scale if spread > 0.0 else torch.zeros_like(differences)

    def state_dict(self) -> dict[str, Any]:
        """Returns the losses that the next step's spread takes in."""
        return {"losses": list(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them up."""
        self._last = list(state["losses"])
