"""The formulas of CurvZO (arXiv 2603.21725) as pure functions: score, support, entropy, budget, water-filling.

The printed equations of the paper were not available to us. All equations except (20) were derived again from the text
around them, and checked by Monte-Carlo (``tests/optim/selection/curvature/test_formulas.py``). Symbols: u is the
perturbation, Δ the derivative of the loss along u, π the inclusion probabilities, g the gradient, and d_b the number of
parameters of block b. A "unit" is a block or a single parameter. Equations (5)-(20) are (26)-(31) with d_b = 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def curvature_score(derivative: float, squared_norms: Tensor) -> Tensor:
    """Computes s_b = Δ² ‖u_b‖² / Σ_c ‖u_c‖², eqs. (7) and (27). Called once a step and direction.

    Without the division, the expectation of s_b is π_b[(d_b + 2)‖g_b‖² + d_b Σ_{c≠b} π_c‖g_c‖²] + O(ε²). For d_b = 1
    this is (6). The first term is the gradient of the block itself. All blocks have the second term, in proportion to
    their size.

    Args:
        derivative: Δ.
        squared_norms: ‖u_b‖², 0 if a unit was not sampled, any shape.

    Returns:
        s, of the shape and type of ``squared_norms``. Its sum is Δ².
    """
    total = squared_norms.sum()
    return squared_norms * (derivative**2 / total) if total > 0 else torch.zeros_like(squared_norms)


def unbiased_score(derivative: float, squared_norms: Tensor, probabilities: Tensor, sizes: Tensor) -> Tensor:
    """Computes s_b = Δ² (‖u_b‖² - π_b d_b) / (π_b (2 + d_b (1 - π_b))), eq. (41). Called once a step and direction.

    The expectation of s_b is ‖g_b‖² + O(ε²), without the term that all blocks have in ``curvature_score``. Its variance
    is of order 1/π_b, and values can be negative. The paper gives the formula for single parameters (d_b = 1). The
    formula for blocks is ours. Both hold for Gaussian z and independent sampling.

    Args:
        derivative: Δ.
        squared_norms: ‖u_b‖², 0 if a unit was not sampled, shape (n,).
        probabilities: π, shape (n,).
        sizes: d, shape (n,).

    Returns:
        s, shape (n,).
    """
    excess = squared_norms - probabilities * sizes
    return derivative**2 * excess / (probabilities * (2.0 + sizes * (1.0 - probabilities)))


def effective_support(scores: Tensor) -> float:
    """Computes d_eff = (Σ √s)² / Σ s, in [1, n], eq. (18). Called once a step.

    It is n if all scores are equal. It is also n if all scores are 0, because nothing is known yet.
    """
    total = float(scores.sum(dtype=torch.float64))
    return float(scores.sqrt().sum(dtype=torch.float64)) ** 2 / total if total > 0 else float(scores.numel())


def normalized_entropy(scores: Tensor) -> float:
    """Computes H = -(1 / log n) Σ q log q with q = √s / Σ √s, in [0, 1], eq. (19). Called once a step.

    It is 1 if all scores are equal, if there is only one unit, or if all scores are 0.
    """
    roots = scores.sqrt()
    total = float(roots.sum(dtype=torch.float64))
    if total == 0.0 or roots.numel() == 1:
        return 1.0
    shares = roots / total
    return -float(torch.special.xlogy(shares, shares).sum(dtype=torch.float64)) / math.log(roots.numel())


def adaptive_budget(support_share: float, entropy: float, *, minimum: float, maximum: float, alpha: float) -> float:
    """Computes B = B_min + (B_max - B_min) [α d_eff/n + (1 - α) H], eq. (20). Called once a step.

    In the text of the paper the budget grows with the entropy. Published code that follows the paper uses 1 - H
    instead.

    Args:
        support_share: d_eff / n.
        entropy: H.
        minimum: B_min, in units or as a share of all units.
        maximum: B_max, in the same measure.
        alpha: α, the weight of the support.

    Returns:
        B, in the same measure.
    """
    return minimum + (maximum - minimum) * (alpha * support_share + (1.0 - alpha) * entropy)


def water_fill(weights: Tensor, budget: float) -> Tensor:
    """Computes π = min(1, c w), with c such that Σ π = B, eqs. (16), (17) and (31). Called once a step.

    With w = √s this minimizes Σ s/π, the bound on the variance of the estimator, among all π ≤ 1 with sum B. The
    constant c is found exactly, in rounds. Each round sets the units with c w ≥ 1 to π = 1, and shares the rest of the
    budget among the other units. It ends when no further unit reaches 1. c never falls, so there are few rounds.

    Args:
        weights: w ≥ 0, any shape. If fewer than B are positive, the zeros share the rest of the budget.
        budget: B, in (0, n].

    Returns:
        π, of the shape and type of the weights.

    Raises:
        ValueError: If the budget is not in (0, n].
    """
    if not 0.0 < budget <= weights.numel():
        msg = f"the budget must lie in (0, {weights.numel()}], not {budget}"
        raise ValueError(msg)
    positive = weights > 0
    count = int(positive.sum())
    if count <= budget:
        rest = (budget - count) / max(weights.numel() - count, 1)
        return torch.full_like(weights, rest).masked_fill_(positive, 1.0)
    full = torch.zeros_like(positive)
    while True:
        scale = (budget - int(full.sum())) / float(weights.masked_fill(full, 0.0).sum(dtype=torch.float64))
        lifted = full | (scale * weights >= 1.0)
        if torch.equal(lifted, full) or torch.equal(lifted, positive):  # the second only by rounding
            return torch.where(lifted, 1.0, scale * weights).to(weights.dtype)
        full = lifted


def fill_and_explore(weights: Tensor, budget_share: float, exploration: float) -> Tensor:
    """Computes π = φ + (1 - φ) min(1, c w) with Σ π = B, so that 1/π is at most 1/φ. Called once a step.

    The exploration φ is not part of the paper.

    Args:
        weights: w ≥ 0, any shape.
        budget_share: B / n, in (φ, 1].
        exploration: φ, the least probability of a unit, in [0, 1).

    Returns:
        π, of the shape and type of the weights.
    """
    count = weights.numel()
    filled = water_fill(weights, min(count * (budget_share - exploration) / (1.0 - exploration), count))
    return filled * (1.0 - exploration) + exploration
