"""First-order training with AdamW, for comparison."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import MethodBase
from zolit.optim import Adam, Backprop, NoProbes, Rounding, Streamed


class FirstOrder(MethodBase):
    """Trains by backpropagation and AdamW (Loshchilov and Hutter, arXiv 1711.05101): the baseline of the other methods.

    A step takes one forward and one backward pass. It keeps activations and the gradients of the trainable weights in
    memory, which zeroth-order methods do not.

    Args:
        eps: Not used, because nothing is probed.
        betas: Weights of the old averages in Adam.
    """

    about: ClassVar = About(
        paper="AdamW, arXiv 1711.05101",
        stages="no probes, Adam on true gradients",
        forwards="1",
        forwards_by_default=1,
        memory="gradients, activations, eight bytes per weight",
        when="a backward pass fits into memory; it is the baseline of all others",
        page="first-order.md",
        backwards=1,
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        **shared: Any,
    ) -> None:
        super().__init__(
            model,
            lr=lr,
            blocks="tensor",
            selection=None,
            perturbation=None,
            prober=Streamed(),
            estimator=NoProbes(),
            update=Backprop(Adam(betas, weight_decay=weight_decay, rounding=update_rounding)),
            **shared,
        )
