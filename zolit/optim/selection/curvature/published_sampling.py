"""The sampling of published code of CurvZO, which differs from the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.blocks import Block, BlockSample, Weight
from zolit.optim.perturbation.directions import Directions
from zolit.optim.randomness import Step, fold_in, key_of, uniform
from zolit.optim.report import SelectionReport
from zolit.optim.selection.base import Selection
from zolit.optim.selection.curvature.budget import AdaptiveBudget
from zolit.optim.selection.curvature.formulas import effective_support

_PURPOSE = key_of("selection")


class PublishedSampling(Selection):
    """Samples blocks in proportion to a sensitivity (a third party's port of the code of CurvZO, arXiv 2603.21725).

    The sampling is Poisson sampling. It differs from the paper in these points:

    - π is proportional to the sensitivity s̄, not to its root.
    - A score contains |Δ| divided by its moving average, not Δ².
    - Scores are shared among the sampled blocks in proportion to ‖z_b‖²/π_b². Only sampled blocks learn.
    - Every twentieth step, the budget k changes, with 1 - H instead of the H of the paper:
      k ← clip(.9k + .1 n(.1 + .7[.7 d_eff/n + .3(1 - H)]), .1n, .8n), with H and d_eff of s̄ itself.

    Args:
        smoothing: Weight of a new score, and of a new |Δ|, in (0, 1].
        minimum: Smallest k / n.
        maximum: Largest k / n.
        alpha: Weight of the support, in [0, 1]; the weight of the entropy is 1 - alpha.
        share: Initial k / n.
        initial: Initial s̄ of each block.
        every: Number of steps between two changes of the budget.

    Raises:
        UserError: If a number is out of its range.
    """

    def __init__(
        self,
        smoothing: float = 0.1,
        minimum: float = 0.1,
        maximum: float = 0.8,
        alpha: float = 0.7,
        share: float = 0.4,
        initial: float = 0.01,
        every: int = 20,
    ) -> None:
        require(0.0 < smoothing <= 1.0, f"smoothing: the weight of a new score must lie in (0, 1], not {smoothing}")
        AdaptiveBudget(minimum, maximum, alpha)  # raises UserError if they are out of range
        self._initial, self._share, self._smoothing = initial, share, smoothing
        self._minimum, self._maximum, self._alpha, self._every = minimum, maximum, alpha, every

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Stores the blocks, and sets all scores to the initial value; see ``Stage.bind``."""
        super().bind(model, weights, blocks)
        self._scores = torch.full((len(blocks),), self._initial, dtype=torch.float64)
        self._mean = 1e-8
        self._count = self._share * len(blocks)
        self._steps = 0

    def probabilities(self) -> Tensor:
        """Computes π = min(1, c p), p = s̄ / Σ s̄, with Σ π near ⌊k⌋ by forty bisections of c. Called once a step.

        Returns:
            Shape (n,), float64.
        """
        shares = self._scores / self._scores.sum()
        target = max(1, min(int(self._count), len(shares)))
        low, high = 0.0, 1.0 / float(shares.max())
        for _ in range(40):
            middle = (low + high) / 2.0
            if float((middle * shares).clamp(max=1.0).sum()) < target:
                low = middle
            else:
                high = middle
        return (high * shares).clamp(max=1.0)

    def select(self, step: Step) -> BlockSample:
        """Samples blocks independently, and at least one; see ``Selection.select``."""
        probabilities = self.probabilities()
        purpose = step.key(_PURPOSE)
        draws = [uniform(fold_in(block.key, onto=purpose)) for block in self.blocks]
        chosen = torch.tensor(draws, dtype=torch.float64) < probabilities
        if not chosen.any():
            chances = zip(probabilities.tolist(), (block.key for block in self.blocks), range(len(draws)), strict=True)
            chosen[max(chances)[2]] = True
        floored = probabilities.clamp(min=1e-8)
        return BlockSample(self.blocks, chosen, floored, 1.0 / floored, needs_squared_norms=True)

    def observe(
        self, sample: BlockSample, directions: Directions, derivatives: Sequence[float], squared_norms: Tensor
    ) -> None:
        """Updates the scores of the sampled blocks and, if it is due, the budget; see ``Selection.observe``."""
        size = sum(map(abs, derivatives)) / len(derivatives)
        self._mean = (1.0 - self._smoothing) * self._mean + self._smoothing * size
        parts = squared_norms.mean(0) / sample.probabilities**2 * sample.chosen
        new = size / (self._mean + 1e-12) * parts / parts.sum()
        moved = (1.0 - self._smoothing) * self._scores + self._smoothing * new
        self._scores = torch.where(sample.chosen, moved, self._scores)
        self._steps += 1
        if self._steps % self._every == 0:
            self._move_budget()

    def _entropy(self) -> float:
        shares = self._scores / self._scores.sum()
        count = len(shares)
        return -float(torch.special.xlogy(shares, shares).sum()) / math.log(count) if count > 1 else 1.0

    def _move_budget(self) -> None:
        count = len(self._scores)
        support = effective_support(self._scores) / count
        raw = self._alpha * support + (1.0 - self._alpha) * (1.0 - self._entropy())
        raw = self._minimum + (self._maximum - self._minimum) * raw
        moved = 0.9 * self._count + 0.1 * raw * count
        self._count = min(max(moved, self._minimum * count), self._maximum * count)

    def report(self, sample: BlockSample) -> SelectionReport:
        """Describes the sample, and the scores after the step; see ``Selection.report``."""
        return self._report(
            sample,
            scores=self._scores.clone(),
            effective_support=effective_support(self._scores),
            normalized_entropy=self._entropy(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns scores, averages and budget, and the names of the blocks; see ``Stage.state_dict``."""
        return {
            "names": [block.name for block in self.blocks],
            "scores": self._scores.clone(),
            "mean": self._mean,
            "count": self._count,
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores scores, averages and budget; see ``Stage.load_state_dict``."""
        self._scores = state["scores"].clone()
        self._mean, self._count, self._steps = state["mean"], state["count"], state["steps"]
