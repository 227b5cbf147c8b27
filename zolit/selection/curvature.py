"""The numbers of CurvZO (arXiv 2603.21725) as pure functions: score, support, entropy, budget, water-filling.

The equations of the published text were not available to us in print; all but (20) were derived again from the words
around them and checked by Monte-Carlo (``tests/selection/test_curvature.py``). Symbols: u the perturbation, Δ the
loss's derivative along it, π inclusion probabilities, g the gradient, d_b the number of parameters of block b. A "unit"
is a block or, where blocks have one parameter, a parameter: (5)-(20) are (26)-(31) with d_b = 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def curvature_score(derivative: float, energies: Tensor) -> Tensor:
    """Eqs. (7) and (27): s_b = Δ² ‖u_b‖² / Σ_c ‖u_c‖².

    Without the division its expectation is π_b[(d_b + 2)‖g_b‖² + d_b Σ_{c≠b} π_c‖g_c‖²] + O(ε²), which is (6) for
    d_b = 1: the block's own gradient, and a term that all blocks share in proportion to their size.

    Args:
        derivative: Δ.
        energies: ‖u_b‖², 0 where a unit was not chosen, any shape.

    Returns:
        s, the energies' shape and dtype; it sums to Δ².
    """
    total = energies.sum()
    return energies * (derivative**2 / total) if total > 0 else torch.zeros_like(energies)


def unbiased_score(derivative: float, energies: Tensor, probabilities: Tensor, sizes: Tensor) -> Tensor:
    """Eq. (41) and its form for blocks: s_b = Δ² (‖u_b‖² - π_b d_b) / (π_b (2 + d_b (1 - π_b))).

    Its expectation is ‖g_b‖² + O(ε²): the term that blocks share is gone, at the price of a variance of order 1/π_b,
    and of values below zero. The paper gives the form for single parameters (d_b = 1); the one for blocks is ours.
    Both hold for Gaussian z and independent sampling.

    Args:
        derivative: Δ.
        energies: ‖u_b‖², 0 where a unit was not chosen, shape (n,).
        probabilities: π, shape (n,).
        sizes: d, shape (n,).

    Returns:
        s, shape (n,).
    """
    return derivative**2 * (energies - probabilities * sizes) / (probabilities * (2.0 + sizes * (1.0 - probabilities)))


def effective_support(scores: Tensor) -> float:
    """Eq. (18): d_eff = (Σ √s)² / Σ s, in [1, n].

    n for a flat distribution, and n where all scores are 0: nothing is known yet.
    """
    total = float(scores.sum(dtype=torch.float64))
    return float(scores.sqrt().sum(dtype=torch.float64)) ** 2 / total if total > 0 else float(scores.numel())


def normalized_entropy(scores: Tensor) -> float:
    """Eq. (19): H = -(1 / log n) Σ q log q with q = √s / Σ √s, in [0, 1].

    1 for a flat distribution, for a single unit, and where all scores are 0.
    """
    roots = scores.sqrt()
    total = float(roots.sum(dtype=torch.float64))
    if total == 0.0 or roots.numel() == 1:
        return 1.0
    shares = roots / total
    return -float(torch.special.xlogy(shares, shares).sum(dtype=torch.float64)) / math.log(roots.numel())


def adaptive_budget(support_share: float, entropy: float, *, minimum: float, maximum: float, alpha: float) -> float:
    """Eq. (20): B = B_min + (B_max - B_min) [α d_eff/n + (1 - α) H].

    The text lets the budget grow with the entropy; published code that follows the paper has 1 - H in its place.

    Args:
        support_share: d_eff / n.
        entropy: H.
        minimum: B_min, in units or as a share of them.
        maximum: B_max, likewise.
        alpha: α, the support's weight against the entropy's.

    Returns:
        B, in whatever the bounds are in.
    """
    return minimum + (maximum - minimum) * (alpha * support_share + (1.0 - alpha) * entropy)


def water_fill(weights: Tensor, budget: float) -> Tensor:
    """Eqs. (16), (17) and (31): π = min(1, c w), with c such that Σ π = B.

    With w = √s this minimizes Σ s/π, the bound on the estimator's variance, among all π ≤ 1 of sum B. The constant
    is found exactly: units that a trial value of c lifts over 1 are set to 1 and the rest of the budget is shared
    among the others, until no unit is lifted; c never falls, so that this ends after few rounds.

    Args:
        weights: w ≥ 0, any shape. If fewer than B are positive, the zeros share what is left over.
        budget: B, in (0, n].

    Returns:
        π, the weights' shape and dtype.

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
        if torch.equal(lifted, full) or torch.equal(lifted, positive):  # the latter by rounding alone
            return torch.where(lifted, 1.0, scale * weights).to(weights.dtype)
        full = lifted


def fill_and_explore(weights: Tensor, budget_share: float, exploration: float) -> Tensor:
    """Water-fills with a chance for every unit: π = φ + (1 - φ) min(1, c w), Σ π = B, so that 1/π is at most 1/φ.

    The exploration is no part of the paper.

    Args:
        weights: w ≥ 0, any shape.
        budget_share: B / n, in (φ, 1].
        exploration: φ, in [0, 1).

    Returns:
        π, the weights' shape and dtype.
    """
    count = weights.numel()
    filled = water_fill(weights, min(count * (budget_share - exploration) / (1.0 - exploration), count))
    return filled * (1.0 - exploration) + exploration
