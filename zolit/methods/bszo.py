"""BSZO: a Bayesian view of a few directions, arXiv 2601.01452."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from zolit.estimators import Bayesian
from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import Perturbation
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.updates import SGD


class BSZO(ZerothOrder):
    """A Kalman filter weighs the derivatives along k directions, and the weights move along all of them.

    yᵢ = [L(θ + εzᵢ) - L(θ)] / ε are measurements, with noise σ_e, of derivatives that are N(0, σ_p²) beforehand;
    θ ← θ - η Σ μᵢzᵢ with the posterior mean μ. With m = k measurements μ = σ_p²/(σ_p² + σ_e²) y (Corollary 3.6);
    further ones and the adapted noise damp derivatives far above σ_p. ``zolit.estimators.Bayesian`` has the details.

    ε, k, m and α are the paper's. σ_p and σ_e have no scale there that suits all models; the published code takes
    √(parameters / 10⁶) for both, which is what None means here.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius. In 16 bits 1e-4 is mostly rounding: take 1e-3 there.
        seed: Seed of the directions.
        directions: k.
        queries: m, at least k.
        prior: σ_p; None is √(parameters / 10⁶).
        noise: σ_e as it begins; None is the same.
        smoothing: α, weight of a new squared residual.
        adaptive: BSZO-B: measurements after the k-th go along eigenvectors of Σ, at a forward each.
        variant: paper (Algorithm 1), or code (as published).
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
        paper="BSZO, arXiv 2601.01452",
        rooms="k directions, Kalman filter over their derivatives",
        forwards="k + 1; BSZO-B m + 1",
        forwards_by_default=3,
        memory="none",
        when="single batches have derivatives far above the rest, as in 16 bits: it damps them",
        page="bszo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-4,
        seed: int = 0,
        directions: int = 2,
        queries: int = 3,
        prior: float | None = None,
        noise: float | None = None,
        smoothing: float = 0.1,
        adaptive: bool = False,
        variant: Literal["paper", "code"] = "paper",
        perturbation: Perturbation | None = None,
        probing: Probing = "streamed",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        max_skipped: int = 10,
    ) -> None:
        millions = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
        scale = max(millions, 1e-12) ** 0.5
        super().__init__(
            model,
            lr=lr,
            eps=eps,
            seed=seed,
            perturbation=perturbation,
            prober=prober_for(probing),
            estimator=Bayesian(
                directions,
                queries,
                scale if prior is None else prior,
                scale if noise is None else noise,
                smoothing,
                adaptive,
                variant,
            ),
            update=SGD(momentum, weight_decay, update_rounding),
            max_skipped=max_skipped,
        )
