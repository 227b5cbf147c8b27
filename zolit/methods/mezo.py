"""MeZO: Malladi et al., Fine-Tuning Language Models with Just Forward Passes, arXiv 2305.17333, Algorithm 1."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.estimators import SPSA
from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import Perturbation
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.updates import SGD


class MeZO(ZerothOrder):
    """Every weight is moved along one Gaussian direction, by the difference of two forwards.

    Δ = [L(θ + εz) - L(θ - εz)] / 2ε and θ ← θ - η(Δz + λθ), z ~ N(0, I); ε is ``eps``, η ``lr``, λ ``weight_decay``.

    The defaults are the paper's for full-parameter tuning of OPT (ε = 1e-3, η in {1e-6, 1e-7}); models below a billion
    parameters want a larger η. Departures from the published code: z is drawn in float32 whatever the weights are,
    probes do not write the weights, those of 16 bits are updated with stochastic rounding, and weight decay leaves out
    all weights of one dimension rather than those with certain names.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        directions: q; more than one averages over as many directions (n-SPSA), at 2q forwards a step.
        perturbation: The law of z; None is GaussianPool.
        probing: streamed (the weights are never written), joint (two probes share a forward: meant for small batches,
            twice the activations) or in_place.
        momentum: μ of the descent; anything but 0 keeps four bytes for every trainable parameter.
        weight_decay: λ, for weights of two dimensions or more.
        update_rounding: Of weights of 16 bits: stochastic (right on average) or nearest (drops small updates).
        max_skipped: Stop when so many steps in a row had a loss that was not finite.

    Raises:
        UserError: If a number is out of its range, or the model has no trainable parameter.
    """

    about: ClassVar = About(
        paper="MeZO, arXiv 2305.17333",
        rooms="everything, Gaussian, two-point SPSA, SGD",
        forwards="2q",
        forwards_by_default=2,
        memory="none",
        when="the baseline of everything; where memory allows nothing else",
        page="mezo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        directions: int = 1,
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
            estimator=SPSA(directions),
            update=SGD(momentum, weight_decay, update_rounding),
            max_skipped=max_skipped,
        )
