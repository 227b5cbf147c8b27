"""Training after Hi-ZFO: backpropagation for some tensors, zeroth order for all others, arXiv 2601.05501."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.methods.base import MethodBase, Probing, prober_for
from zolit.optim import SGD, SPSA, Adam, Backprop, Knapsack, Rounding


class HiZFO(MethodBase):
    """Trains tensors within a backward budget by backpropagation and Adam, and all others by MeZO.

    A knapsack problem over importance and cost, solved before the first step, decides which tensors these are. The
    paper's text was not recovered in full. The measure of importance and the blending are reconstructions
    (``zolit.optim.Knapsack``).

    Args:
        blocks: What the knapsack problem chooses from: tensor, layer, or a regular expression (weights in whose names
            it finds the same text form a block).
        budget: ρ, the share of the cost of a whole backward pass.
        interval: Steps between two solutions of the knapsack problem. 0 keeps the first.
        zo_share: Factor of the learning rate for weights that MeZO moves.
    """

    about: ClassVar = About(
        paper="after Hi-ZFO, arXiv 2601.05501",
        stages="knapsack: Adam on true gradients, or MeZO",
        forwards="3",
        forwards_by_default=3,
        memory="gradients, activations, eight bytes per weight that Adam trains",
        when="part of a backward pass fits into memory",
        page="hi-zfo.md",
        backwards=1,
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        budget: float = 0.3,
        interval: int = 0,
        zo_share: float = 1.0,
        probing: Probing = "streamed",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        **shared: Any,
    ) -> None:
        selection = Knapsack(budget, interval)
        adam = Adam(weight_decay=weight_decay, rounding=update_rounding)
        descent = SGD(momentum, weight_decay, update_rounding)
        super().__init__(
            model,
            lr=lr,
            selection=selection,
            prober=prober_for(probing),
            estimator=SPSA(),
            update=Backprop(adam, selection.first_order, descent, zo_share),
            **shared,
        )
