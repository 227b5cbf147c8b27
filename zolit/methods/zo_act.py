"""ZO-Act: coefficients over a fixed basis of activations, arXiv 2607.01125."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import MethodBase, Probing, prober_for
from zolit.optim import SPSA, Adam, OneShotBasis
from zolit.optim.modules.adapters import attach


class ZOAct(MethodBase):
    """Adam on the coefficients C of y = f(x) + (x Vᵀ) Cᵀ; the model's own weights are frozen and may be quantised.

    The constructor attaches the coefficients to the model's linear layers and freezes all other weights. V comes from
    the first batch. ``zolit.optim.modules.adapters.merge_coefficients`` adds C V to the weights after training. Adam
    has its usual defaults. The paper's ε and η were not recovered: the defaults are ours.

    Args:
        rank: r, the number of coefficients per output.
        pattern: Regular expression. Only layers in whose names it finds a match get coefficients.
        betas: Weights of the old averages in Adam.
    """

    about: ClassVar = About(
        paper="ZO-Act, arXiv 2607.01125",
        stages="coefficients over a one-shot activation basis, Adam",
        forwards="2",
        forwards_by_default=2,
        memory="(d + 3n)·r numbers per layer",
        when="the base model is quantised or must not change",
        page="zo-act.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-4,
        rank: int = 1,
        pattern: str = "",
        betas: tuple[float, float] = (0.9, 0.999),
        probing: Probing = "streamed",
        **shared: Any,
    ) -> None:
        attach(model, rank, pattern)
        super().__init__(
            model,
            lr=lr,
            perturbation=OneShotBasis(),
            prober=prober_for(probing),
            estimator=SPSA(),
            update=Adam(betas),
            **shared,
        )
