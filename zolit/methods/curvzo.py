"""CurvZO: Adaptive Curvature-Guided Sparse Zeroth-Order Optimization, arXiv 2603.21725."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import nn

from zolit.errors import require, require_one_of
from zolit.methods.about import About
from zolit.methods.base import Method
from zolit.optim import (
    SPSA,
    AdaptiveBudget,
    BlockScores,
    Budget,
    CurvatureSampling,
    FixedBudget,
    ParameterSampling,
    Perturbation,
    PublishedSampling,
    Rademacher,
    ScoreRule,
    Selection,
    UniformSampling,
)


class CurvZO(Method):
    """Perturbs few blocks per step, and more often those with a large smoothed curvature score.

    Each block b is sampled with probability π_b. The direction is u = m ⊙ z, with the mask m of the sampled blocks, and
    Δ is MeZO's difference along u.

    - Score: s_b = Δ²‖u_b‖² / Σ‖u_c‖² (27), smoothed to s̄_b with weight β (8).
    - Probabilities: π_b ∝ √s̄_b, at most 1, with Σπ = B (31).
    - Budget: B = B_min + (B_max - B_min)[α d_eff/n + (1-α) H] (20), from the effective support d_eff (18) and the
      normalized entropy H (19) of s̄.
    - Update: θ_b ← θ_b - η (Δ/π_b) u_b (28).

    ``docs/methods/curvzo.md`` has all equations, their sources and the departures.

    Taken literally, (8) makes the sampling collapse: a block that is not sampled scores 0, is sampled less often, and
    scores less. By default a score changes only when its block was sampled (``score="sampled"``), and every block keeps
    a probability of at least φ (``exploration``). The paper's values of β, α, B_min and B_max were not available. The
    defaults are those of a third party's port of the authors' code.

    Args:
        lr: η, the learning rate. auto measures it on the first batches; see docs/learning-rate.md.
        blocks: What is sampled: tensor, layer, a regular expression (weights in whose names it finds the same text form
            a block), or parameter: each single parameter has its own score (section 3; eight bytes each).
        budget: adaptive, or a fixed share of the blocks in (0, 1].
        budget_min: B_min of the adaptive budget, as a share of the blocks.
        budget_max: B_max of the adaptive budget, as a share of the blocks.
        alpha: α, the weight of the effective support; the entropy has 1 - α.
        smoothing: β, the weight of a new score. A smaller value is smoother.
        score: How scores are smoothed: sampled, corrected, literal (as the paper says) or unbiased (eq. 41).
        divide_by_size: Divide a block's score by its number of parameters.
        horvitz_thompson: Multiply a sampled block's update by 1/π, eq. (28), which makes the estimate unbiased.
        exploration: φ, the smallest π of any block.
        sampling: curvature, or uniform: the paper's ablation, π = B/n.
        variant: paper, or code: what a third party's port of the authors' code does. It uses smoothing, budget_min,
            budget_max and alpha, and no other option of the sampling.
        directions: q, the number of directions to average over. A step takes 2q forwards.
    """

    about: ClassVar = About(
        paper="CurvZO, arXiv 2603.21725",
        stages="selection by curvature scores, adaptive budget",
        forwards="2q",
        forwards_by_default=2,
        memory="one number per block",
        when="perturbing and updating is a large part of a step: only the sampled blocks are touched",
        page="curvzo.md",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
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
        **shared: Any,
    ) -> None:
        require(
            budget == "adaptive" or isinstance(budget, int | float),
            f"budget: must be adaptive or a share of the blocks in (0, 1], not {budget!r}",
        )
        require(
            score != "unbiased" or not isinstance(perturbation, Rademacher),
            "score: the unbiased score (eq. 41) holds for Gaussian directions, not for Rademacher directions",
        )
        require_one_of("sampling", sampling, ("curvature", "uniform"))
        require_one_of("variant", variant, ("paper", "code"))
        as_paper = (budget, score, divide_by_size, horvitz_thompson, sampling, blocks == "parameter")
        require(
            variant == "paper" or as_paper == ("adaptive", "sampled", False, True, "curvature", False),
            "variant: code has its own budget, scores and weights; leave budget, score, divide_by_size, "
            "horvitz_thompson and sampling at their defaults, and do not set blocks to parameter",
        )
        share: Budget = AdaptiveBudget(budget_min, budget_max, alpha) if budget == "adaptive" else FixedBudget(budget)
        selection: Selection
        if variant == "code":
            selection = PublishedSampling(smoothing, budget_min, budget_max, alpha)
        elif blocks == "parameter":
            require(
                sampling == "curvature" and not divide_by_size,
                "blocks: parameter allows neither sampling: uniform nor divide_by_size",
            )
            selection = ParameterSampling(share, smoothing, score, horvitz_thompson, exploration)
        else:
            rule = CurvatureSampling if sampling == "curvature" else UniformSampling
            scores = BlockScores(smoothing, score, divide_by_size)
            selection = rule(share, scores, horvitz_thompson, exploration)
        super().__init__(
            model,
            blocks="tensor" if blocks == "parameter" else blocks,
            selection=selection,
            perturbation=perturbation,
            estimator=SPSA(directions),
            **shared,
        )
