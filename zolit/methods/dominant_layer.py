"""Dominant-Layer ZO: one layer suffices, arXiv 2606.05516."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import Perturbation
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.selection import OneLayer, Selection
from zolit.updates import SGD


class DominantLayer(ZerothOrder):
    """MeZO on one decoder layer, the one where activations become massive.

    The layer is found before the first step, by one forward. Layers below it are computed once for both probes. How
    the paper tells the layer was not recovered but in words; ``zolit.selection.OneLayer`` says what stands for it.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        layer: The layer's place from 0; None looks for it.
        magnitude: Least size of a massive activation.
        ratio: Least size in medians.
        within: Which of the layer's tensors a step moves; None is all of them.
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
        paper="Dominant-Layer ZO, arXiv 2606.05516",
        rooms="one layer",
        forwards="2",
        forwards_by_default=2,
        memory="none",
        when="perturbing and updating takes long beside the forwards; the least to ship",
        page="dominant-layer.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        layer: int | None = None,
        magnitude: float = 100.0,
        ratio: float = 1000.0,
        within: Selection | None = None,
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
            selection=OneLayer(layer, magnitude, ratio, within),
            max_skipped=max_skipped,
        )
