"""ZO-Act: coefficients over a fixed basis of activations, arXiv 2607.01125."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.adapters import attach
from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import OneShotBasis
from zolit.probing import Probing, prober_for
from zolit.updates import Adam


class ZOAct(ZerothOrder):
    """Adam on coefficients C of y = f(x) + (x Vᵀ) Cᵀ; the model's own weights are frozen, and may be quantised.

    Making the optimizer attaches the coefficients to the model's linear layers and freezes everything else
    (``zolit.adapters``; ``zolit.adapters.merge`` adds C V to the weights in the end). V comes from the first batch.
    Adam's options are its own defaults; ε and η were not recovered and are ours.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        rank: r.
        pattern: Regular expression; layers in whose names it finds nothing get no coefficients.
        betas: Of Adam.
        probing: streamed (the weights are never written), joint (two probes share a forward) or in_place.
        max_skipped: Stop when so many steps in a row had a loss that was not finite.

    Raises:
        UserError: If a number is out of its range, or the model has no trainable parameter.
    """

    about: ClassVar = About(
        paper="ZO-Act, arXiv 2607.01125",
        rooms="coefficients over a one-shot activation basis, Adam",
        forwards="2",
        forwards_by_default=2,
        memory="(d + 3n) r numbers a layer",
        when="the base is quantised or must stay as it is",
        page="zo-act.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-4,
        eps: float = 1e-3,
        seed: int = 0,
        rank: int = 1,
        pattern: str = "",
        betas: tuple[float, float] = (0.9, 0.999),
        probing: Probing = "streamed",
        max_skipped: int = 10,
    ) -> None:
        attach(model, rank, pattern)
        super().__init__(
            model,
            lr=lr,
            eps=eps,
            seed=seed,
            prober=prober_for(probing),
            perturbation=OneShotBasis(),
            update=Adam(betas),
            max_skipped=max_skipped,
        )
