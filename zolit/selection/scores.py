"""How a single step's curvature scores become the smoothed ones that sampling goes by."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from zolit.errors import require, require_one_of
from zolit.selection.curvature import curvature_score, unbiased_score

ScoreRule = Literal["sampled", "corrected", "literal", "unbiased"]
"""How scores are smoothed:

- ``sampled``: s̄_b ← (1-β) s̄_b + β s_b where b was chosen, and s̄_b as it was elsewhere. It estimates E[s_b | b chosen],
  in which π_b does not occur as a factor.
- ``corrected``: s̄_b ← (1-β) s̄_b + β s_b/π_b for all b: the same expectation, a larger variance.
- ``literal``: eq. (8) read word for word, s̄_b ← (1-β) s̄_b + β s_b for all b, with s_b = 0 where b was not chosen. As
  E[s_b] is proportional to π_b and π_b grows with s̄_b, what falls behind is sampled less and falls further: π
  collapses onto few large blocks. Kept for comparison.
- ``unbiased``: eq. (41) for all b. Its expectation is ‖g_b‖² and its variance large; negative averages count as 0.
"""


class Smoothing:
    """Exponential moving average, eq. (8) of CurvZO (arXiv 2603.21725).

    Args:
        smoothing: β, in (0, 1]; smaller is smoother.
        rule: See ``ScoreRule``.

    Raises:
        UserError: If β is out of its range or the rule unknown.
    """

    def __init__(self, smoothing: float, rule: ScoreRule) -> None:
        require(0.0 < smoothing <= 1.0, f"smoothing: the weight of a new score must lie in (0, 1], not {smoothing}")
        require_one_of("score", rule, get_args(ScoreRule))
        self._smoothing = smoothing
        self.rule = rule

    def smooth(self, averages: Tensor, scores: Tensor, sampled: Tensor, probabilities: Tensor) -> Tensor:
        """Returns the averages after a step.

        Args:
            averages: s̄, shape (n,).
            scores: s of the step, 0 where a unit was not sampled (``unbiased``: for all), shape (n,).
            sampled: Shape (n,), bool.
            probabilities: π, shape (n,).
        """
        if self.rule == "corrected":
            scores = scores / probabilities
        moved = averages.lerp(scores, self._smoothing)
        return torch.where(sampled, moved, averages) if self.rule == "sampled" else moved


class BlockScores:
    """Smoothed scores per block.

    The averages begin, for all blocks, at the mean score of the chosen blocks of the first step whose derivative is
    not 0 (``unbiased``: at 0): flat, and of the scale that later scores have.

    Args:
        smoothing: β, in (0, 1]; smaller is smoother.
        rule: See ``ScoreRule``.
        divide_by_size: Divide a block's score by its number of parameters.

    Raises:
        UserError: If β is out of its range or the rule unknown.
    """

    def __init__(self, smoothing: float = 0.1, rule: ScoreRule = "sampled", divide_by_size: bool = False) -> None:
        self._smoothing = Smoothing(smoothing, rule)
        self._unbiased = rule == "unbiased"
        self._divide_by_size = divide_by_size
        self._started = False

    def bind(self, sizes: Tensor) -> None:
        """Takes the blocks' numbers of parameters, shape (n,)."""
        self._sizes = sizes.double()
        self.values = torch.zeros_like(self._sizes)

    def observe(self, derivatives: list[float], energies: Tensor, chosen: Tensor, probabilities: Tensor) -> None:
        """Takes in one step.

        Args:
            derivatives: Δ along each direction, shape (k,).
            energies: ‖u_b‖², shape (k, n), float64.
            chosen: Shape (n,), bool.
            probabilities: π, shape (n,).
        """
        pairs = zip(derivatives, energies, strict=True)
        if self._unbiased:
            scores = torch.stack([unbiased_score(d, e, probabilities, self._sizes) for d, e in pairs]).mean(0)
        else:
            scores = torch.stack([curvature_score(d, e) for d, e in pairs]).mean(0)
        if self._divide_by_size:
            scores = scores / self._sizes
        if not self._started and any(derivatives):
            self._started = True
            if not self._unbiased:
                self.values = torch.full_like(self.values, float(scores[chosen].mean()))
        self.values = self._smoothing.smooth(self.values, scores, chosen, probabilities)

    @property
    def usable(self) -> Tensor:
        """The averages with negative ones as 0, shape (n,), float64."""
        return self.values.clamp(min=0.0)

    def state_dict(self) -> dict[str, object]:
        """Returns the averages and whether they have begun."""
        return {"values": self.values.clone(), "started": self._started}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Takes up a state that ``state_dict`` returned."""
        values = state["values"]
        assert isinstance(values, Tensor)
        self.values = values.clone()
        self._started = bool(state["started"])
