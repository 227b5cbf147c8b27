"""Sparse-MeZO: small weights only, arXiv 2402.15751."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import Perturbation
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.selection import SmallWeights
from zolit.updates import SGD


class SparseMeZO(ZerothOrder):
    """MeZO on the smallest weights of each tensor.

    m = 1 where |θ| is among the smallest share of its tensor, at θ as it was before the first step; probes and
    updates go along m ⊙ z.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        density: Share of each tensor that moves.
        refresh: Steps between two masks; 0 keeps the first.
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
        paper="Sparse-MeZO, arXiv 2402.15751",
        rooms="small weights",
        forwards="2",
        forwards_by_default=2,
        memory="one bit a weight",
        when="rates that make MeZO diverge: small weights stand more",
        page="sparse-mezo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        density: float = 0.25,
        refresh: int = 0,
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
            selection=SmallWeights(density, refresh),
            max_skipped=max_skipped,
        )
