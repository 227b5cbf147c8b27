"""AGZO: directions within a batch's activations, arXiv 2601.17261."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from zolit.estimators import SPSA, OneSided
from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import ActivationSubspace
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.updates import SGD


class AGZO(ZerothOrder):
    """Matrices of linear layers move along RAᵀ, A the leading inputs of the step's own batch.

    The gradient of Y = XWᵀ lies in the row space of X. A look at the batch gives A (power iterations) and L(θ);
    then g = [L(θ + εΔ) - L(θ)] / ε and θ ← θ - ηgΔ, so that E[ĝ] = G AAᵀ. All other weights get dense directions.
    ``zolit.perturbation.ActivationSubspace`` has the details.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the directions.
        rank: r.
        iterations: K, power iterations.
        two_sided: Take central differences, at a forward more.
        probing: streamed (the weights are never written), joint (two probes share a forward) or in_place.
        momentum: μ of the descent; anything but 0 keeps four bytes for every trainable parameter.
        weight_decay: λ, for weights of two dimensions or more.
        update_rounding: Of weights of 16 bits: stochastic (right on average) or nearest (drops small updates).
        max_skipped: Stop when so many steps in a row had a loss that was not finite.

    Raises:
        UserError: If a number is out of its range, or the model has no trainable parameter.
    """

    about: ClassVar = About(
        paper="AGZO, arXiv 2601.17261",
        rooms="the batch's activation subspace, one-sided",
        forwards="2; two-sided 3",
        forwards_by_default=2,
        memory="d r numbers a matrix",
        when="linear layers hold most weights; ε and η need tuning of their own",
        page="agzo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 5e-7,
        eps: float = 1e-4,
        seed: int = 0,
        rank: int = 1,
        iterations: int = 3,
        two_sided: bool = False,
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
            perturbation=ActivationSubspace(rank, iterations),
            estimator=SPSA() if two_sided else OneSided(),
            max_skipped=max_skipped,
        )
