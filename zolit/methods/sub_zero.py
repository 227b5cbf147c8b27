"""SubZero: random subspaces of each matrix, arXiv 2410.08989."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import OrthogonalSubspace
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.updates import SGD


class SubZero(ZerothOrder):
    """MeZO along U Z Vᵀ for each matrix, U and V orthonormal and drawn anew every so many steps.

    Z ~ N(0, 1) of shape (r, r) is drawn every step; norms and biases get dense directions. With ``scale``
    directions are about as long as dense ones, so that MeZO's ε and η suit.
    ``zolit.perturbation.OrthogonalSubspace`` has the details.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        rank: r; of a smaller matrix its smaller side.
        refresh: T0, steps for which U and V stay.
        scale: Multiply directions by √(nd)/r, as the published code does.
        probing: streamed (the weights are never written), joint (two probes share a forward) or in_place.
        momentum: μ of the descent; anything but 0 keeps four bytes for every trainable parameter.
        weight_decay: λ, for weights of two dimensions or more.
        update_rounding: Of weights of 16 bits: stochastic (right on average) or nearest (drops small updates).
        max_skipped: Stop when so many steps in a row had a loss that was not finite.

    Raises:
        UserError: If a number is out of its range, or the model has no trainable parameter.
    """

    about: ClassVar = About(
        paper="SubZero, arXiv 2410.08989",
        rooms="orthonormal low-rank subspaces",
        forwards="2",
        forwards_by_default=2,
        memory="(n + d) r numbers a matrix",
        when="drawing and adding dense noise takes long; the same law under MeZO-GV or Greedy",
        page="sub-zero.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        rank: int = 24,
        refresh: int = 1000,
        scale: bool = True,
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
            perturbation=OrthogonalSubspace(rank, refresh, scale),
            max_skipped=max_skipped,
        )
