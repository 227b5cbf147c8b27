"""The budget of a step: the expected share of units, which are blocks or parameters, to perturb."""

from __future__ import annotations

from abc import ABC, abstractmethod

from zolit.errors import require
from zolit.optim.selection.curvature.formulas import (
    adaptive_budget,
)


def check_exploration(exploration: float, budget: Budget) -> None:
    """Checks that a budget exceeds the least probability of a unit. Called once, by the constructor of a selection.

    Raises:
        UserError: If the exploration is not below the smallest share of the budget.
    """
    require(
        0.0 <= exploration < budget.lowest,
        f"exploration: the least probability of a block, {exploration}, must lie in [0, {budget.lowest}), below the "
        "smallest share of the budget: lower it, or raise the budget",
    )


class Budget(ABC):
    """Returns the budget of each step."""

    lowest: float
    """The smallest share that the budget may return."""

    @abstractmethod
    def share(self, support_share: float, entropy: float) -> float:
        """Returns B / n, in (0, 1]. Called once a step, by ``Selection.select``.

        Args:
            support_share: Effective support of the scores divided by the number of units.
            entropy: Normalized entropy of the scores.
        """


class FixedBudget(Budget):
    """Returns the same share in every step.

    Args:
        share: B / n, in (0, 1].

    Raises:
        UserError: If the share is out of its range.
    """

    def __init__(self, share: float) -> None:
        require(0.0 < share <= 1.0, f"budget: the share of blocks to perturb must lie in (0, 1], not {share}")
        self.lowest = share

    def share(self, support_share: float, entropy: float) -> float:
        """Returns the constant share; see ``Budget.share``."""
        return self.lowest


class AdaptiveBudget(Budget):
    """Returns a share that grows with effective support and entropy of the scores: eq. (20) of CurvZO.

    Args:
        minimum: Smallest share, which is used if one unit has the whole score.
        maximum: Largest share, which is used if all scores are equal, as at the start.
        alpha: Weight of the support; the weight of the entropy is 1 - alpha.

    Raises:
        UserError: If not 0 < minimum <= maximum <= 1, or alpha is not in [0, 1].
    """

    def __init__(self, minimum: float = 0.1, maximum: float = 0.8, alpha: float = 0.7) -> None:
        require(
            0.0 < minimum <= maximum <= 1.0,
            f"budget_min, budget_max: need 0 < budget_min <= budget_max <= 1, not {minimum} and {maximum}",
        )
        require(0.0 <= alpha <= 1.0, f"alpha: the weight of the support in the budget must lie in [0, 1], not {alpha}")
        self.lowest = minimum
        self._maximum = maximum
        self._alpha = alpha

    def share(self, support_share: float, entropy: float) -> float:
        """Returns the share of eq. (20); see ``Budget.share``."""
        return adaptive_budget(support_share, entropy, minimum=self.lowest, maximum=self._maximum, alpha=self._alpha)
