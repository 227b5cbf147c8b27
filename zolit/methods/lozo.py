"""LOZO: low-rank directions with a lazy side, arXiv 2410.07698."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import LazyLowRank
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.updates import SGD


class LOZO(ZerothOrder):
    """MeZO along UVᵀ for each matrix, V kept for ν steps.

    The paper probes at θ ± εUVᵀ and moves by η c UVᵀ/r. With u = UVᵀ/√r, whose entries have variance 1, this is a
    step of MeZO along u at the probe radius ε√r and the same η, and is made so. The published code leaves 1/r out:
    its η is r times ours. LOZO-M, momentum within the subspace, is not here.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        rank: r.
        refresh: ν, steps for which V stays.
        probing: streamed (the weights are never written), joint (two probes share a forward) or in_place.
        momentum: μ of the descent; anything but 0 keeps four bytes for every trainable parameter.
        weight_decay: λ, for weights of two dimensions or more.
        update_rounding: Of weights of 16 bits: stochastic (right on average) or nearest (drops small updates).
        max_skipped: Stop when so many steps in a row had a loss that was not finite.

    Raises:
        UserError: If a number is out of its range, or the model has no trainable parameter.
    """

    about: ClassVar = About(
        paper="LOZO, arXiv 2410.07698",
        rooms="low rank, one side lazy",
        forwards="2",
        forwards_by_default=2,
        memory="d r numbers a matrix",
        when="drawing and adding dense noise takes long",
        page="lozo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        rank: int = 2,
        refresh: int = 50,
        probing: Probing = "streamed",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        max_skipped: int = 10,
    ) -> None:
        super().__init__(
            model,
            lr=lr,
            eps=eps * max(rank, 1) ** 0.5,
            seed=seed,
            prober=prober_for(probing),
            update=SGD(momentum, weight_decay, update_rounding),
            perturbation=LazyLowRank(rank, refresh),
            max_skipped=max_skipped,
        )
