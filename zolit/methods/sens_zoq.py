"""SensZOQ: a static mask of sensitive weights."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import Perturbation
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.selection import SensitiveWeights
from zolit.updates import SGD


class SensZOQ(ZerothOrder):
    """MeZO on the weights with the largest squared gradients, which one backward pass before the first step finds.

    The published method takes the mask from another corpus, offline, and quantises the other weights; here it is
    the first batch, and the others stay as they are.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        density: Share of all weights that moves.
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
        paper="SensZOQ, arXiv 2406.02913",
        rooms="a thousandth of the weights, by gradient",
        forwards="2",
        forwards_by_default=2,
        memory="one bit a weight",
        when="a small set of weights is to be shipped; a backward pass fits once",
        page="sens-zoq.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        density: float = 1e-3,
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
            selection=SensitiveWeights(density),
            max_skipped=max_skipped,
        )
