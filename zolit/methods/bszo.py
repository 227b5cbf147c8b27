"""BSZO: Bayesian estimates of the derivatives along a few directions, arXiv 2601.01452."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Method
from zolit.optim import Bayesian


class BSZO(Method):
    """Estimates the derivatives along k directions by a Kalman filter and moves along all k directions.

    The measurements are yᵢ = [L(θ + εzᵢ) - L(θ)] / ε, with noise σ_e. The prior of each derivative is N(0, σ_p²). The
    update is θ ← θ - η Σ μᵢzᵢ with the posterior mean μ. With m = k measurements μ = σ_p²/(σ_p² + σ_e²) y
    (Corollary 3.6). Further measurements and the adapted noise damp derivatives far above σ_p.
    ``zolit.optim.Bayesian`` has the details.

    The defaults of ε, k, m and α are the paper's. The paper has no σ_p and σ_e that suit all models. The published
    code takes √(parameters / 10⁶) for both, and so does None here.

    Args:
        eps: ε, the probe radius. With weights of 16 bits, differences at 1e-4 are mostly rounding errors; use 1e-3.
        directions: k, the number of directions.
        queries: m, the number of measurements, at least k.
        prior: σ_p, the prior's standard deviation. None is √(parameters / 10⁶).
        noise: σ_e at the start. None is √(parameters / 10⁶).
        smoothing: α, the weight of a new squared residual.
        adaptive: BSZO-B: measurements after the k-th probe eigenvectors of Σ, at one forward each.
        variant: paper (Algorithm 1) or code (the published code).
    """

    about: ClassVar = About(
        paper="BSZO, arXiv 2601.01452",
        stages="k directions, Kalman filter over their derivatives",
        forwards="k + 1; BSZO-B m + 1",
        forwards_by_default=3,
        memory="none",
        when="single batches have derivatives far above the rest, as in 16 bits: the filter damps them",
        page="bszo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 1e-4,
        directions: int = 2,
        queries: int = 3,
        prior: float | None = None,
        noise: float | None = None,
        smoothing: float = 0.1,
        adaptive: bool = False,
        variant: Literal["paper", "code"] = "paper",
        **shared: Any,
    ) -> None:
        millions = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
        scale = max(millions, 1e-12) ** 0.5
        prior, noise = scale if prior is None else prior, scale if noise is None else noise
        estimator = Bayesian(directions, queries, prior, noise, smoothing, adaptive, variant)
        super().__init__(model, eps=eps, estimator=estimator, **shared)
