"""Smooths the curvature scores of single steps. The smoothed scores determine the sampling."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from zolit.errors import require, require_one_of
from zolit.optim.selection.curvature.formulas import curvature_score, unbiased_score

ScoreRule = Literal["sampled", "corrected", "literal", "unbiased"]
"""How to smooth scores:

- ``sampled``: s̄_b ← (1-β) s̄_b + β s_b if b was sampled. Otherwise s̄_b does not change. It estimates
  E[s_b | b sampled], which does not have π_b as a factor.
- ``corrected``: s̄_b ← (1-β) s̄_b + β s_b/π_b for all b. It has the same expectation and a larger variance.
- ``literal``: eq. (8) as printed, s̄_b ← (1-β) s̄_b + β s_b for all b, with s_b = 0 if b was not sampled. E[s_b] is
  proportional to π_b, and π_b grows with s̄_b. A block with a low score is therefore sampled less, and its score falls
  further. π collapses to a few large blocks. This rule is for comparison only.
- ``unbiased``: eq. (41) for all b. Its expectation is ‖g_b‖². Its variance is large. Negative averages count as 0.
"""


class Smoothing:
    """Computes the exponential moving average of scores, eq. (8) of CurvZO (arXiv 2603.21725).

    Args:
        smoothing: β, the weight of a new score, in (0, 1].
        rule: See ``ScoreRule``.

    Raises:
        UserError: If β is out of its range, or if the rule is unknown.
    """

    def __init__(self, smoothing: float, rule: ScoreRule) -> None:
        require(0.0 < smoothing <= 1.0, f"smoothing: the weight of a new score must lie in (0, 1], not {smoothing}")
        require_one_of("score", rule, get_args(ScoreRule))
        self._smoothing = smoothing
        self.rule = rule

    def smooth(self, averages: Tensor, scores: Tensor, sampled: Tensor, probabilities: Tensor) -> Tensor:
        """Returns the averages after a step. Called once a step, by ``Selection.observe``.

        Args:
            averages: s̄, shape (n,).
            scores: s of the step, 0 if a unit was not sampled (with ``unbiased``: s of all units), shape (n,).
            sampled: Whether each unit was sampled, shape (n,), bool.
            probabilities: π, shape (n,).
        """
        if self.rule == "corrected":
            scores = scores / probabilities
        moved = averages.lerp(scores, self._smoothing)
        return torch.where(sampled, moved, averages) if self.rule == "sampled" else moved


class BlockScores:
    """Keeps one smoothed score for each block.

    All averages begin at the same value, on the scale of later scores. It is the mean score of the sampled blocks in
    the first step with a derivative that is not 0. With the rule ``unbiased`` they begin at 0.

    Args:
        smoothing: β, the weight of a new score, in (0, 1].
        rule: See ``ScoreRule``.
        divide_by_size: Whether to divide the score of a block by its number of parameters.

    Raises:
        UserError: If β is out of its range, or if the rule is unknown.
    """

    def __init__(self, smoothing: float = 0.1, rule: ScoreRule = "sampled", divide_by_size: bool = False) -> None:
        self._smoothing = Smoothing(smoothing, rule)
        self._unbiased = rule == "unbiased"
        self._divide_by_size = divide_by_size
        self._started = False

    def bind(self, sizes: Tensor) -> None:
        """Stores the numbers of parameters of the blocks, shape (n,). Called once, by ``Selection.bind``."""
        self._sizes = sizes.double()
        self.values = torch.zeros_like(self._sizes)

    def observe(self, derivatives: list[float], squared_norms: Tensor, chosen: Tensor, probabilities: Tensor) -> None:
        """Updates the averages by one step. Called once a step, by ``Selection.observe``.

        Args:
            derivatives: Δ along each direction, shape (k,).
            squared_norms: ‖u_b‖², shape (k, n), float64.
            chosen: Whether each block was sampled, shape (n,), bool.
            probabilities: π, shape (n,).
        """
        pairs = zip(derivatives, squared_norms, strict=True)
        if self._unbiased:
            scores = torch.stack([unbiased_score(d, norms, probabilities, self._sizes) for d, norms in pairs]).mean(0)
        else:
            scores = torch.stack([curvature_score(d, norms) for d, norms in pairs]).mean(0)
        if self._divide_by_size:
            scores = scores / self._sizes
        if not self._started and any(derivatives):
            self._started = True
            if not self._unbiased:
                self.values = torch.full_like(self.values, float(scores[chosen].mean()))
        self.values = self._smoothing.smooth(self.values, scores, chosen, probabilities)

    @property
    def usable(self) -> Tensor:
        """The averages, with 0 instead of negative values, shape (n,), float64."""
        return self.values.clamp(min=0.0)

    def state_dict(self) -> dict[str, object]:
        """Returns the averages, and whether they have begun. Called when a checkpoint is saved."""
        return {"values": self.values.clone(), "started": self._started}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores what ``state_dict`` returned. Called when a run resumes."""
        values = state["values"]
        assert isinstance(values, Tensor)
        self.values = values.clone()
        self._started = bool(state["started"])
