"""CurvZO: Adaptive Curvature-Guided Sparse Zeroth-Order Optimization, arXiv 2603.21725."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from zolit.errors import require, require_one_of
from zolit.estimators import SPSA
from zolit.methods.about import About
from zolit.optimizer import ZerothOrder
from zolit.perturbation import Perturbation, Rademacher
from zolit.probing import Probing, prober_for
from zolit.rounding import Rounding
from zolit.selection import (
    AdaptiveBudget,
    BlockScores,
    Budget,
    Curvature,
    FixedBudget,
    PerParameter,
    PublishedCurvature,
    ScoreRule,
    Selection,
    Uniform,
)
from zolit.updates import SGD


class CurvZO(ZerothOrder):
    """Perturbs few blocks a step, those more often whose smoothed curvature score is large.

    Each block b is chosen with probability π_b, and u = m ⊙ z; Δ is MeZO's along u. Then
    s_b = Δ²‖u_b‖² / Σ‖u_c‖² (eq. 27) is smoothed to s̄_b with weight β (8); π_b ∝ √s̄_b, at most 1, with
    Σπ = B (31); B = B_min + (B_max - B_min)[α d_eff/n + (1-α) H] (20) from the effective support d_eff (18) and
    the normalized entropy H (19) of s̄; and θ_b ← θ_b - η (Δ/π_b) u_b (28). ``docs/methods/curvzo.md`` has all
    equations, where each comes from, and the departures.

    Taken literally, (8) makes sampling collapse: a block that is not chosen scores 0, is chosen less, and scores less.
    By default a block's score moves only when the block was chosen (``score="sampled"``), and every block keeps a
    chance φ (``exploration``). The paper's values of β, α, B_min and B_max were not available; the defaults are those
    of a third party's port of the authors' code.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate; a third of what suits MeZO is a good start.
        eps: ε, the probe radius.
        seed: Seed of directions and samples.
        blocks: What is chosen: tensor, layer, a regular expression (weights in whose names it finds the same text are
            one block), or parameter: each single parameter has a score of its own (section 3; eight bytes each).
        budget: adaptive, or a fixed share of the blocks in (0, 1].
        budget_min: B_min of the adaptive budget, as a share of the blocks.
        budget_max: B_max of the adaptive budget, as a share.
        alpha: α, weight of the effective support against the entropy.
        smoothing: β, weight of a new score; smaller is smoother.
        score: How scores are smoothed: sampled, corrected, literal (the paper's words) or unbiased (eq. 41).
        divide_by_size: Divide a block's score by its number of parameters.
        horvitz_thompson: Weigh a chosen block's update by 1/π, eq. (28), which makes the estimate unbiased.
        exploration: φ, the least π of any block.
        sampling: curvature, or uniform: the paper's ablation, π = B/n.
        variant: paper, or code: what a third party's port of the authors' code does
            (``zolit.selection.PublishedCurvature``), which goes by ``smoothing``, ``budget_min``, ``budget_max`` and
            ``alpha``, and by no other option of the sampling.
        directions: q; more than one averages over as many directions, at 2q forwards a step.
        perturbation: The law of z; None is GaussianPool.
        probing: streamed (the weights are never written), joint (two probes share a forward: meant for small batches,
            twice the activations) or in_place.
        momentum: μ of the descent; anything but 0 keeps four bytes for every trainable parameter.
        weight_decay: λ, for weights of two dimensions or more.
        update_rounding: Of weights of 16 bits: stochastic (right on average) or nearest (drops small updates).
        max_skipped: Stop when so many steps in a row had a loss that was not finite.

    Raises:
        UserError: If a number is out of its range, or the options do not go together.
    """

    about: ClassVar = About(
        paper="CurvZO, arXiv 2603.21725",
        rooms="selection by curvature scores, adaptive budget",
        forwards="2q",
        forwards_by_default=2,
        memory="one number a block",
        when="perturbing and updating is a large part of a step: only the sampled blocks are touched",
        page="curvzo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        seed: int = 0,
        blocks: str = "tensor",
        budget: float | Literal["adaptive"] = "adaptive",
        budget_min: float = 0.1,
        budget_max: float = 0.8,
        alpha: float = 0.7,
        smoothing: float = 0.1,
        score: ScoreRule = "sampled",
        divide_by_size: bool = False,
        horvitz_thompson: bool = True,
        exploration: float = 0.05,
        sampling: Literal["curvature", "uniform"] = "curvature",
        variant: Literal["paper", "code"] = "paper",
        directions: int = 1,
        perturbation: Perturbation | None = None,
        probing: Probing = "streamed",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        update_rounding: Rounding = "stochastic",
        max_skipped: int = 10,
    ) -> None:
        require(
            budget == "adaptive" or isinstance(budget, int | float),
            f"budget: must be adaptive or a share of the blocks in (0, 1], not {budget!r}",
        )
        require(
            score != "unbiased" or not isinstance(perturbation, Rademacher),
            "score: the unbiased score (eq. 41) holds for Gaussian directions, not for Rademacher ones",
        )
        require_one_of("sampling", sampling, ("curvature", "uniform"))
        require_one_of("variant", variant, ("paper", "code"))
        as_paper = (budget, score, divide_by_size, horvitz_thompson, sampling, blocks == "parameter")
        require(
            variant == "paper" or as_paper == ("adaptive", "sampled", False, True, "curvature", False),
            "variant: code has a budget, scores and weights of its own; leave budget, score, divide_by_size, "
            "horvitz_thompson and sampling at their defaults, and blocks at other than parameter",
        )
        share: Budget = AdaptiveBudget(budget_min, budget_max, alpha) if budget == "adaptive" else FixedBudget(budget)
        selection: Selection
        if variant == "code":
            selection = PublishedCurvature(smoothing, budget_min, budget_max, alpha)
        elif blocks == "parameter":
            require(
                sampling == "curvature" and not divide_by_size,
                "blocks: single parameters (blocks: parameter) go with neither sampling: uniform nor divide_by_size",
            )
            selection = PerParameter(share, smoothing, score, horvitz_thompson, exploration)
        else:
            rule = Curvature if sampling == "curvature" else Uniform
            scores = BlockScores(smoothing, score, divide_by_size)
            selection = rule(share, scores, horvitz_thompson, exploration)
        super().__init__(
            model,
            lr=lr,
            eps=eps,
            seed=seed,
            blocks="tensor" if blocks == "parameter" else blocks,
            selection=selection,
            perturbation=perturbation,
            prober=prober_for(probing),
            estimator=SPSA(directions),
            update=SGD(momentum, weight_decay, update_rounding),
            max_skipped=max_skipped,
        )
