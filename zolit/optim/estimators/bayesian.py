"""Estimates the derivatives along a few directions by a Kalman filter."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from zolit.errors import require, require_one_of
from zolit.optim.estimators.base import Estimate, Estimator, Evaluate
from zolit.optim.estimators.one_sided import forward_differences


class Bayesian(Estimator):
    """Filters noisy measurements of the derivatives along k directions (BSZO, arXiv 2601.01452).

    The prior of each derivative is N(0, σ_p²). A measurement has noise σ_e and is yᵢ = [L(θ + εuᵢ) - L(θ)] / ε. Each
    measurement d·g ≈ y updates mean and covariance: K = Σd / (dᵀΣd + σ_e²), μ ← μ + K(y - dᵀμ), Σ ← Σ - KdᵀΣ. The
    weights move along Σᵢ μᵢuᵢ, which is a sum and not a mean.

    The first k measurements are along the k directions. m - k further measurements follow, along the direction of the
    largest variance. They reuse the values measured before. If ``adaptive`` is true (BSZO-B), they are along the
    leading eigenvector of Σ, and each costs one forward. σ_e² is a moving average of squared residuals and persists
    from step to step. In practice the method damps derivatives far above σ_p. It costs k + 1 forwards, and m - k more
    if ``adaptive`` is true.

    The method has two variants:

    - ``paper`` is the printed Algorithm 1. The noise is adapted before each measurement after the k-th, by the residual
      of the measurement before it.
    - ``code`` is the published code. The noise is adapted before every measurement, by the residual of this
      measurement. A measurement uses at least a tenth of the initial σ_e; the moving average has no such limit. The
      denominator is dᵀΣd + σ_e²‖d‖². Σ is kept symmetric. Coefficients below 1e-10 are set to 0.

    Both variants count a repeated measurement as an independent one.

    Args:
        directions: k, the number of directions.
        queries: m, the number of measurements, at least k.
        prior: σ_p, the standard deviation of the prior.
        noise: Initial value of σ_e, the standard deviation of the noise.
        smoothing: α, the weight of a new squared residual, in [0, 1].
        adaptive: Whether the measurements after the k-th are along eigenvectors of Σ (BSZO-B).
        variant: paper or code.

    Raises:
        UserError: If a number is out of its range, or if the variant is unknown.
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
        require(prior > 0.0, f"prior: the standard deviation of derivatives must be positive, not {prior}")
        require(noise > 0.0, f"noise: the standard deviation of measurements must be positive, not {noise}")
        require(0.0 <= smoothing <= 1.0, f"smoothing: must lie in [0, 1], not {smoothing}")
        require_one_of("variant", variant, ("paper", "code"))
        self.num_directions = directions
        self._queries = queries
        self._prior = prior
        self._least_noise = 0.1 * noise
        self._variance = noise**2
        self._smoothing = smoothing
        self._adaptive = adaptive
        self._as_code = variant == "code"

    def estimate(self, evaluate: Evaluate, eps: float) -> Estimate:
        """Measures the derivatives and filters them; see ``Estimator.estimate``."""
        count = self.num_directions
        measured = forward_differences(evaluate, eps, count)
        mean = torch.zeros(count, dtype=torch.float64)
        covariance = self._prior**2 * torch.eye(count, dtype=torch.float64)
        variance = self._variance  # assigned after the last measurement, because a skipped step must not change it
        before: tuple[Tensor, Tensor] | None = None
        for query in range(self._queries):
            if query >= count and before is not None and not self._as_code:
                variance = self._adapted(variance, *before, mean)
            direction, y = self._measurement(evaluate, eps, query, measured, covariance)
            if self._as_code:
                variance = self._adapted(variance, direction, y, mean)
            spread = covariance @ direction
            gain = spread / (direction @ spread + self._noise(variance, direction))
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
        """Makes one measurement; returns d, shape (k,), and y, shape ()."""
        count = self.num_directions
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
        """Returns σ_e² after one more residual."""
        residual = float((y - direction @ mean).square() / direction.square().sum())
        return (1.0 - self._smoothing) * variance + self._smoothing * residual

    def _noise(self, variance: float, direction: Tensor) -> float:
        """Returns the variance of the noise of a measurement. The code limits it only here, not in the average."""
        if not self._as_code:
            return variance
        return max(variance, self._least_noise**2) * float(direction.square().sum())

    def state_dict(self) -> dict[str, Any]:
        """Returns σ_e²; see ``Stage.state_dict``."""
        return {"variance": self._variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores σ_e²; see ``Stage.load_state_dict``."""
        self._variance = state["variance"]
