"""MeZO-Greedy: the best of several probes, arXiv 2601.04710."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.estimators import Greedy
from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import Perturbation
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.updates import SGD


class MeZOGreedy(ZerothOrder):
    """Of M probes the one with the lowest loss is gone along, by MeZO's difference.

    z* = argmin L(θ + εzᵢ); g = [L(θ + εz*) - L(θ - εz*)] / 2ε; θ ← θ - ηgz*. M is the paper's.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        directions: M.
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
        paper="MeZO-Greedy, arXiv 2601.04710",
        rooms="M directions, greedy choice",
        forwards="M + 2",
        forwards_by_default=6,
        memory="none",
        when="the paper's comparisons; per forward, averaging q directions does no worse",
        page="mezo-greedy.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 2e-7,
        eps: float = 1e-3,
        seed: int = 0,
        directions: int = 4,
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
            estimator=Greedy(directions),
            max_skipped=max_skipped,
        )
