"""How much of the model a step perturbs, as a share of the units that can be sampled."""

from __future__ import annotations

from abc import ABC, abstractmethod

from zolit.errors import require
from zolit.selection.curvature import adaptive_budget


class Budget(ABC):
    """Gives a step its budget."""

    lowest: float
    """The least share that it may give."""

    @abstractmethod
    def share(self, support_share: float, entropy: float) -> float:
        """Returns B / n, in (0, 1].

        Args:
            support_share: Effective support of the scores over the number of units.
            entropy: Their normalized entropy.
        """


class FixedBudget(Budget):
    """The same share at every step.

    Args:
        share: B / n, in (0, 1].

    Raises:
        UserError: If the share is out of its range.
    """

    def __init__(self, share: float) -> None:
        require(0.0 < share <= 1.0, f"budget: the share of blocks to perturb must lie in (0, 1], not {share}")
        self.lowest = share

    def share(self, support_share: float, entropy: float) -> float:
        """Returns the share."""
        return self.lowest


class AdaptiveBudget(Budget):
    """Eq. (20) of CurvZO: the share grows with effective support and entropy of the scores.

    Args:
        minimum: Least share, when one unit has all the score.
        maximum: Largest share, when the scores are flat, as they are at the start.
        alpha: Weight of the support against the entropy.

    Raises:
        UserError: If not 0 < minimum <= maximum <= 1, or alpha is not in [0, 1].
    """

    def __init__(self, minimum: float = 0.1, maximum: float = 0.8, alpha: float = 0.7) -> None:
        require(
            0.0 < minimum <= maximum <= 1.0,
            f"budget_min, budget_max: need 0 < budget_min <= budget_max <= 1, not {minimum} and {maximum}",
        )
        require(0.0 <= alpha <= 1.0, f"alpha: the support's weight in the budget must lie in [0, 1], not {alpha}")
        self.lowest = minimum
        self._maximum = maximum
        self._alpha = alpha

    def share(self, support_share: float, entropy: float) -> float:
        """Returns eq. (20)."""
        return adaptive_budget(support_share, entropy, minimum=self.lowest, maximum=self._maximum, alpha=self._alpha)
