"""FZOO: normalized one-sided probes, arXiv 2506.09034."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Method
from zolit.optim import NormalizedOneSided, Rademacher


class FZOO(Method):
    """Averages N one-sided differences along random signs and divides the step by the spread of their losses.

    θ ← θ - η Σ [L(θ + εuᵢ) - L(θ)] uᵢ / (εNσ), where σ is the standard deviation of the L(θ + εuᵢ). N and ε are the
    published code's. The code's formula has no 1/ε (``variant="code"``): its η is the default here divided by ε.

    Args:
        directions: N, the number of directions, at least 2.
        variant: paper, or code: no 1/ε, and half of the probes are new after the first step.
    """

    about: ClassVar = About(
        paper="FZOO, arXiv 2506.09034",
        stages="N directions of signs, one-sided differences, divided by the spread of the losses",
        forwards="N + 1; published code N/2 + 1",
        forwards_by_default=9,
        memory="none",
        when="the learning rate must not depend on the scale of the loss",
        page="fzoo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = 1e-4,
        directions: int = 8,
        variant: Literal["paper", "code"] = "paper",
        **shared: Any,
    ) -> None:
        estimator = NormalizedOneSided(directions, variant)
        super().__init__(model, eps=eps, perturbation=Rademacher(), estimator=estimator, **shared)
