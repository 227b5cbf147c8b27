"""HiZOO: a diagonal Hessian learned from forward passes, arXiv 2402.15173."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import Method
from zolit.optim import Central, DiagonalCurvature, Perturbation


class HiZOO(Method):
    """Scales directions by 1/√h, where h estimates the diagonal of the Hessian from the losses of the probes.

    u = z/√h, Δ = [L(θ + εu) - L(θ - εu)] / 2ε and θ ← θ - ηΔu. Then
    h ← (1 - α)h + α|L(θ + εu) + L(θ - εu) - 2L(θ)| hz² / 2ε². The defaults of η, ε and α are the published code's.
    With α = 0 this is MeZO at three forwards per step.

    Args:
        smoothing: α, the weight of a new curvature.
        perturbation: The law of z, before the scaling. None is GaussianPool.
    """

    about: ClassVar = About(
        paper="HiZOO, arXiv 2402.15173",
        stages="directions scaled by a learned diagonal Hessian",
        forwards="3",
        forwards_by_default=3,
        memory="four bytes per weight",
        when="some memory is left and curvature differs much between weights",
        page="hizoo.md",
    )

    def __init__(
        self, model: nn.Module, *, smoothing: float = 1e-8, perturbation: Perturbation | None = None, **shared: Any
    ) -> None:
        super().__init__(model, perturbation=DiagonalCurvature(smoothing, perturbation), estimator=Central(), **shared)
