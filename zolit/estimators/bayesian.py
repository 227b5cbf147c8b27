"""A Kalman filter over the derivatives along a few directions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from zolit.errors import require, require_one_of
from zolit.estimators.base import Estimate, Estimator, Evaluate
from zolit.estimators.one_sided import forward_differences


class Bayesian(Estimator):
    """Derivatives along k directions, N(0, σ_p²) beforehand, are measured with noise σ_e (BSZO, arXiv 2601.01452).

    yᵢ = [L(θ + εuᵢ) - L(θ)] / ε; each measurement d·g ≈ y updates mean and covariance, K = Σd / (dᵀΣd + σ_e²),
    μ ← μ + K(y - dᵀμ), Σ ← Σ - KdᵀΣ; and the weights move along Σᵢ μᵢuᵢ, the sum. After the k measurements along the
    directions come m - k more: along the direction of the largest variance, answered from what was measured before, or,
    where ``adaptive`` (BSZO-B), along the leading eigenvector of Σ, by a forward more each. σ_e² is a moving average
    of squared residuals and persists from step to step. Derivatives far above σ_p are damped: that is what the method
    does in practice. Costs k + 1 forwards, and m - k more where adaptive.

    Two forms. ``paper`` is the printed Algorithm 1: the noise is adapted before measurements after the k-th, by the
    residual of the one before. ``code`` is what the published code does: before every measurement, by its own residual,
    with σ_e at least a tenth of what it began with; the denominator is dᵀΣd + σ_e²‖d‖², Σ is kept symmetric, and
    coefficients below 1e-10 are left out. There a repeated measurement counts as an independent one, in both forms.

    Args:
        directions: k.
        queries: m, at least k.
        prior: σ_p.
        noise: σ_e, as it begins.
        smoothing: α, weight of a new squared residual, in [0, 1].
        adaptive: Measure along eigenvectors of Σ after the k-th (BSZO-B).
        variant: paper or code.

    Raises:
        UserError: If a number is out of its range or the variant unknown.
    """

    def __init__(
        self,
        directions: int = 2,
        queries: int = 3,
        prior: float = 1.0,
        noise: float = 1.0,
        smoothing: float = 0.1,
        adaptive: bool = False,
        variant: Literal["paper", "code"] = "paper",
    ) -> None:
        require(directions >= 1, f"directions: a step needs at least one direction, not {directions}")
        require(
            queries >= directions, f"queries: must be at least {directions}, the number of directions, not {queries}"
        )
        require(prior > 0.0, f"prior: the deviation of derivatives must be positive, not {prior}")
        require(noise > 0.0, f"noise: the deviation of measurements must be positive, not {noise}")
        require(0.0 <= smoothing <= 1.0, f"smoothing: must lie in [0, 1], not {smoothing}")
        require_one_of("variant", variant, ("paper", "code"))
        self.directions = directions
        self._queries = queries
        self._prior = prior
        self._least_noise = 0.1 * noise
        self._variance = noise**2
        self._smoothing = smoothing
        self._adaptive = adaptive
        self._as_code = variant == "code"

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Measures and filters; see the base class."""
        count = self.directions
        measured = forward_differences(evaluate, eps, count)
        mean = torch.zeros(count, dtype=torch.float64)
        covariance = self._prior**2 * torch.eye(count, dtype=torch.float64)
        variance = self._variance  # of the optimizer's state: a step that is skipped leaves it alone
        before: tuple[Tensor, Tensor] | None = None
        for query in range(self._queries):
            if query >= count and before is not None and not self._as_code:
                variance = self._adapted(variance, *before, mean)
            direction, y = self._measurement(evaluate, eps, query, measured, covariance)
            if self._as_code:
                variance = self._adapted(variance, direction, y, mean)
            norm = direction.square().sum() if self._as_code else 1.0
            spread = covariance @ direction
            gain = spread / (direction @ spread + variance * norm)
            mean = mean + gain * (y - direction @ mean)
            covariance = covariance - torch.outer(gain, spread)
            if self._as_code:
                covariance = (covariance + covariance.t()) / 2.0 + 1e-10 * torch.eye(count, dtype=torch.float64)
            before = direction, y
        self._variance = variance
        if self._as_code:
            mean = torch.where(mean.abs() < 1e-10, 0.0, mean)
        return Estimate(mean, measured)

    def _measurement(
        self, evaluate: Evaluate, eps: float, query: int, measured: Tensor, covariance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns d and y of a measurement, shapes (k,) and ()."""
        count = self.directions
        units = torch.eye(count, dtype=torch.float64)
        if query < count:
            return units[query], measured[query]
        if not self._adaptive:
            likeliest = int(covariance.diagonal().argmax())
            return units[likeliest], measured[likeliest]
        direction = torch.linalg.eigh(covariance).eigenvectors[:, -1]
        direction = direction * torch.sign(direction[direction.abs().argmax()])
        center, moved = evaluate(torch.stack([torch.zeros_like(direction), eps * direction]))
        return direction, (moved - center) / eps

    def _adapted(self, variance: float, direction: Tensor, y: Tensor, mean: Tensor) -> float:
        """Returns σ_e² after a residual."""
        residual = float((y - direction @ mean).square() / direction.square().sum())
        adapted = (1.0 - self._smoothing) * variance + self._smoothing * residual
        return max(adapted, self._least_noise**2) if self._as_code else adapted

    def state_dict(self) -> dict[str, Any]:
        """Returns σ_e²."""
        return {"variance": self._variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up σ_e²."""
        self._variance = state["variance"]
