"""Hi-ZFO-style training: first order where it pays, zeroth order elsewhere, arXiv 2601.05501."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import Perturbation
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.selection import Knapsack
from zolit.updates import SGD, Adam, Backprop


class HiZFO(ZerothOrder):
    """Tensors that a backward budget pays for are trained by backpropagation and Adam, all others by MeZO.

    Which ones is a knapsack problem over importance and cost, solved before the first step. The paper's text was
    not recovered in full: how importance is measured, what is blended and how, are reconstructed
    (``zolit.selection.Knapsack``).

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        budget: ρ, the share of a whole backward pass.
        interval: Steps between two profiles; 0 keeps the first.
        zo_share: What the rate is multiplied by where weights move by forward passes alone.
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
        paper="after Hi-ZFO, arXiv 2601.05501",
        rooms="knapsack: Adam on true gradients, or MeZO",
        forwards="3",
        forwards_by_default=3,
        memory="gradients, activations, eight bytes a weight of the chosen",
        when="a part of a backward pass fits",
        page="hi-zfo.md",
        backwards=1,
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        budget: float = 0.3,
        interval: int = 0,
        zo_share: float = 1.0,
        perturbation: Perturbation | None = None,
        probing: Probing = "streamed",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        max_skipped: int = 10,
    ) -> None:
        selection = Knapsack(budget, interval)
        super().__init__(
            model,
            lr=lr,
            eps=eps,
            seed=seed,
            perturbation=perturbation,
            prober=prober_for(probing),
            update=Backprop(
                Adam(weight_decay=weight_decay, rounding=update_rounding),
                selection.first_order,
                SGD(momentum, weight_decay, update_rounding),
                zo_share,
            ),
            selection=selection,
            max_skipped=max_skipped,
        )
