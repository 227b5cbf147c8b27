"""FZOO: normalized one-sided probes, arXiv 2506.09034."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from zolit.estimators import NormalizedOneSided
from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import Rademacher
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.updates import SGD


class FZOO(ZerothOrder):
    """N one-sided probes along random signs; the step is divided by the spread of their losses.

    θ ← θ - η Σ [L(θ + εuᵢ) - L(θ)] uᵢ / (εNσ), σ the standard deviation of the L(θ + εuᵢ). N, η and ε are the
    published code's; its formula has no 1/ε (``variant="code"``), which is in η.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        directions: N, at least 2.
        variant: paper, or code: no 1/ε, and half of the probes new after the first step.
        probing: streamed (the weights are never written), joint (two probes share a forward) or in_place.
        momentum: μ of the descent; anything but 0 keeps four bytes for every trainable parameter.
        weight_decay: λ, for weights of two dimensions or more.
        update_rounding: Of weights of 16 bits: stochastic (right on average) or nearest (drops small updates).
        max_skipped: Stop when so many steps in a row had a loss that was not finite.

    Raises:
        UserError: If a number is out of its range, or the model has no trainable parameter.
    """

    about: ClassVar = About(
        paper="FZOO, arXiv 2506.09034",
        rooms="N signs, one-sided, divided by the spread",
        forwards="N + 1",
        forwards_by_default=9,
        memory="none",
        when="rates must not depend on the loss's scale",
        page="fzoo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 5e-9,
        eps: float = 1e-4,
        seed: int = 0,
        directions: int = 8,
        variant: Literal["paper", "code"] = "paper",
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
            prober=prober_for(probing),
            update=SGD(momentum, weight_decay, update_rounding),
            perturbation=Rademacher(),
            estimator=NormalizedOneSided(directions, variant),
            max_skipped=max_skipped,
        )
