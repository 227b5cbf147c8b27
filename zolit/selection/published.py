"""CurvZO's sampling as published code has it, which is not quite what the paper says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zolit.blocks import Block
from zolit.choice import Choice
from zolit.directions import Directions
from zolit.errors import require
from zolit.hashing import mix, name_key, uniform
from zolit.report import SelectionReport
from zolit.selection.base import Selection
from zolit.selection.budget import AdaptiveBudget
from zolit.selection.curvature import effective_support

_PURPOSE = name_key("selection")


class PublishedCurvature(Selection):
    """Poisson sampling in proportion to a sensitivity (a third party's port of the code of CurvZO, arXiv 2603.21725).

    Against the paper: π is proportional to the sensitivity s̄ and not to its root; scores take |Δ| over its moving
    average and not Δ²; they are shared by ‖z_b‖²/π_b² among the blocks drawn, and only these learn; and every
    twentieth step the budget k moves, with 1 - H where the paper has H:
    k ← clip(.9k + .1 n(.1 + .7[.7 d_eff/n + .3(1 - H)]), .1n, .8n), H and d_eff of s̄ itself.

    Args:
        smoothing: Weight of a new score, and of a new |Δ|, in (0, 1].
        minimum: Least k / n.
        maximum: Largest k / n.
        alpha: Weight of the support against the entropy, in [0, 1].
        share: k / n at first.
        initial: s̄ at first.
        every: Steps between two moves of the budget.

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
        AdaptiveBudget(minimum, maximum, alpha)  # says what is wrong with them
        self._initial, self._share, self._smoothing = initial, share, smoothing
        self._minimum, self._maximum, self._alpha, self._every = minimum, maximum, alpha, every

    def bind(self, blocks: Sequence[Block], seed: int) -> None:
        """Takes the blocks; see the base class."""
        super().bind(blocks, seed)
        self._scores = torch.full((len(blocks),), self._initial, dtype=torch.float64)
        self._mean = 1e-8
        self._count = self._share * len(blocks)
        self._steps = 0

    def probabilities(self) -> Tensor:
        """Returns π = min(1, c p), p = s̄ / Σ s̄, with Σ π near ⌊k⌋ by forty bisections of c; shape (n,)."""
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

    def select(self, step: int) -> Choice:
        """Samples the blocks of a step."""
        probabilities = self.probabilities()
        purpose = mix(self._seed, _PURPOSE, step)
        draws = [uniform(mix(block.key, onto=purpose)) for block in self._blocks]
        chosen = torch.tensor(draws, dtype=torch.float64) < probabilities
        if not chosen.any():
            chances = zip(probabilities.tolist(), (block.key for block in self._blocks), range(len(draws)), strict=True)
            chosen[max(chances)[2]] = True
        floored = probabilities.clamp(min=1e-8)
        return Choice(chosen, floored, 1.0 / floored, measure_energies=True)

    def observe(self, choice: Choice, directions: Directions, derivatives: Sequence[float]) -> None:
        """Moves the scores of the chosen blocks and, where it is due, the budget."""
        size = sum(map(abs, derivatives)) / len(derivatives)
        self._mean = (1.0 - self._smoothing) * self._mean + self._smoothing * size
        energies = directions.energies.mean(0) / choice.probabilities**2 * choice.chosen
        new = size / (self._mean + 1e-12) * energies / energies.sum()
        moved = (1.0 - self._smoothing) * self._scores + self._smoothing * new
        self._scores = torch.where(choice.chosen, moved, self._scores)
        self._steps += 1
        if self._steps % self._every == 0:
            self._move_budget()

    def _entropy(self) -> float:
        shares = self._scores / self._scores.sum()
        count = len(shares)
        return (
            -float(torch.special.xlogy(shares, shares).sum()) / float(torch.tensor(count).log()) if count > 1 else 1.0
        )

    def _move_budget(self) -> None:
        count = len(self._scores)
        support = effective_support(self._scores) / count
        raw = self._alpha * support + (1.0 - self._alpha) * (1.0 - self._entropy())
        raw = self._minimum + (self._maximum - self._minimum) * raw
        moved = 0.9 * self._count + 0.1 * raw * count
        self._count = min(max(moved, self._minimum * count), self._maximum * count)

    def report(self, choice: Choice) -> SelectionReport:
        """Says what was sampled, and the scores as they are now."""
        return SelectionReport(
            names=self._names,
            sizes=self._sizes,
            probabilities=choice.probabilities,
            chosen=choice.chosen,
            scores=self._scores.clone(),
            units=len(self._blocks),
            budget=float(choice.probabilities.sum()),
            clipped=float((choice.probabilities >= 1.0).double().mean()),
            perturbed_parameters=int(self._sizes[choice.chosen].sum()),
            effective_support=effective_support(self._scores),
            normalized_entropy=self._entropy(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns scores, averages and budget, with the blocks' names."""
        return {
            "names": list(self._names),
            "scores": self._scores.clone(),
            "mean": self._mean,
            "count": self._count,
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them up."""
        self._scores = state["scores"].clone()
        self._mean, self._count, self._steps = state["mean"], state["count"], state["steps"]
