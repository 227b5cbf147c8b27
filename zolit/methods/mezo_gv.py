"""MeZO-GV: a guiding vector from several probes, arXiv 2601.04710."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.estimators import Guiding
from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import Perturbation
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.updates import SGD


class MeZOGV(ZerothOrder):
    """The direction is made of M probes: the mean of those with low losses less the mean of the others.

    v = mean of the best ⌊αM⌋ zᵢ - mean of the rest, by L(θ + εzᵢ); g = [L(θ + εv) - L(θ - εv)] / 2ε; θ ← θ - ηgv. M
    and α are the paper's. With M = 2 and α = 1/2 this is MeZO along z₁ - z₂, and two of four forwards are spent for
    nothing.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        directions: M.
        share: α, the share of the probes that counts as good.
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
        paper="MeZO-GV, arXiv 2601.04710",
        rooms="M directions, guiding vector",
        forwards="M + 2",
        forwards_by_default=6,
        memory="none",
        when="the paper's comparisons; per forward, averaging q directions does no worse",
        page="mezo-gv.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 2e-7,
        eps: float = 1e-3,
        seed: int = 0,
        directions: int = 4,
        share: float = 0.5,
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
            perturbation=perturbation,
            prober=prober_for(probing),
            update=SGD(momentum, weight_decay, update_rounding),
            estimator=Guiding(directions, share),
            max_skipped=max_skipped,
        )
