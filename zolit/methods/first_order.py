"""First-order training with AdamW, for comparison."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.estimators import NoProbes
from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.rounding import Rounding
from zolit.updates import Adam, Backprop


class FirstOrder(ZerothOrder):
    """Backpropagation and AdamW (Loshchilov and Hutter, arXiv 1711.05101), in the same frame as all others.

    One forward and one backward pass a step, with the activations and gradients of the trainable weights in memory:
    what zeroth-order methods do without.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        betas: Weights of the old averages.
        weight_decay: λ, for weights of two dimensions or more.
        update_rounding: Of weights of 16 bits: stochastic (right on average) or nearest (drops small updates).
        max_skipped: Stop when so many steps in a row had a loss that was not finite.

    Raises:
        UserError: If a number is out of its range, or the model has no trainable parameter.
    """

    about: ClassVar = About(
        paper="AdamW, arXiv 1711.05101",
        rooms="no probes; Adam on true gradients",
        forwards="1",
        forwards_by_default=1,
        memory="gradients, activations, eight bytes a weight",
        when="a backward pass fits; the yardstick of all others",
        page="first-order.md",
        backwards=1,
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-5,
        eps: float = 1e-3,
        seed: int = 0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        max_skipped: int = 10,
    ) -> None:
        super().__init__(
            model,
            lr=lr,
            eps=eps,
            seed=seed,
            estimator=NoProbes(),
            update=Backprop(Adam(betas, weight_decay=weight_decay, rounding=update_rounding)),
            max_skipped=max_skipped,
        )
