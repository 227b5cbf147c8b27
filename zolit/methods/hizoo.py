"""HiZOO: a diagonal Hessian learned from forward passes, arXiv 2402.15173."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.estimators import Central
from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import DiagonalCurvature, Perturbation
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.updates import SGD


class HiZOO(ZerothOrder):
    """Directions are scaled by 1/√h, h a diagonal of the loss's Hessian that the probes' losses teach.

    u = z/√h, Δ = [L(θ + εu) - L(θ - εu)] / 2ε, θ ← θ - ηΔu; and h ← (1 - α)h + α|L(θ + εu) + L(θ - εu) - 2L(θ)| hz²
    / 2ε². η, ε and α are the published code's. With α = 0 this is MeZO at three forwards.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        smoothing: α, weight of a new curvature.
        perturbation: The law of z; None is GaussianPool.
        probing: streamed (the weights are never written), joint (two probes share a forward) or in_place.
        momentum: μ of the descent; anything but 0 keeps four bytes for every trainable parameter.
        weight_decay: λ, for weights of two dimensions or more.
        update_rounding: Of weights of 16 bits: stochastic (right on average) or nearest (drops small updates).
        max_skipped: Stop when so many steps in a row had a loss that was not finite.

    Raises:
        UserError: If a number is out of its range, or the model has no trainable parameter.
    """

    about: ClassVar = About(
        paper="HiZOO, arXiv 2402.15173",
        rooms="directions scaled by a learned diagonal",
        forwards="3",
        forwards_by_default=3,
        memory="four bytes a weight",
        when="some memory is left and curvature differs much between weights",
        page="hizoo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        smoothing: float = 1e-8,
        perturbation: Perturbation | None = None,
        probing: Probing = "streamed",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        max_skipped: int = 10,
    ) -> None:
        super().__init__(
            model,
            lr=lr,
            eps=eps,
            seed=seed,
            perturbation=DiagonalCurvature(smoothing, perturbation),
            prober=prober_for(probing),
            update=SGD(momentum, weight_decay, update_rounding),
            estimator=Central(),
            max_skipped=max_skipped,
        )
