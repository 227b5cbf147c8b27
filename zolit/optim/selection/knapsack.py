"""Chooses the tensors to train by backpropagation within a budget. The others move by forward passes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from zolit.errors import require
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import BlockSample, Weight
from zolit.optim.randomness import Step
from zolit.optim.report import SelectionReport
from zolit.optim.selection.base import Selection

_UNITS = 1000


def best_set(importance: Sequence[float], own: Sequence[int], passing: Sequence[int], budget: int) -> list[int]:
    """Solves exactly for the set of tensors of largest importance whose backward pass is within a budget.

    Tensors are in the order in which a backward pass reaches them. The gradient of tensor k costs own[k]. To propagate
    past tensor k costs passing[k]. The gradient of a tensor needs the propagation past all tensors up to it. The
    condition is Σ_{k∈S} own[k] + Σ_{k≤max S} passing[k] ≤ budget (after GreenTrainer's selection). Called when a
    profile is made.

    Args:
        importance: Importance of each tensor, shape (n,).
        own: Cost of each gradient, whole numbers, shape (n,).
        passing: Cost to propagate past each tensor, whole numbers, shape (n,).
        budget: The largest total cost, a whole number.

    Returns:
        Indices of the chosen tensors, ascending; empty if no tensor of positive importance fits.
    """
    count = len(importance)
    best = torch.zeros(budget + 1, dtype=torch.float64)  # largest importance of the tensors before k, for each cost
    taken = torch.zeros(count, budget + 1, dtype=torch.bool)
    value, deepest, rest, passed = 0.0, -1, 0, 0
    for k in range(count):
        passed += passing[k]
        left = budget - passed - own[k]
        if left < 0 and passed > budget:
            break
        if left >= 0 and importance[k] + float(best[left]) > value:
            value, deepest, rest = importance[k] + float(best[left]), k, left
        if own[k] <= budget:
            with_k = best.clone()
            with_k[own[k] :] = best[: budget + 1 - own[k]] + importance[k]
            with_k[: own[k]] = -torch.inf
            taken[k] = with_k > best
            best = torch.maximum(best, with_k)
    chosen = [deepest] if deepest >= 0 else []
    for k in range(deepest - 1, -1, -1):
        if taken[k, rest]:
            chosen.append(k)
            rest -= own[k]
    return sorted(chosen)


class Knapsack(Selection):
    """Perturbs the blocks that a budget of backpropagation does not cover (Hi-ZFO-style).

    The other blocks are first order: an update trains them by backpropagation. The text of Hi-ZFO (arXiv 2601.05501)
    was not recovered in full. Profiling and selection are reconstructed from GreenTrainer, on which Hi-ZFO seems to
    build. A profile makes a trial step, equal to the first step of Adam, which moves all weights by dw. With the
    gradient g₁ after this step, the importance of a tensor is I_k = -Σ g₁ ⊙ dw, divided by max |I|. The gradient of a
    tensor and the propagation past it have the same cost, in proportion to its number of parameters. While a profile
    is made, it takes memory for copies of the weights and for gradients.

    Args:
        budget: ρ, the share of a whole backward pass, in [0, 1].
        interval: Number of steps between two profiles; 0 keeps the first profile.
        trial: The distance by which the trial step moves each parameter.

    Raises:
        UserError: If a number is out of its range.
    """

    leaves_to_backprop = True
    nests = False

    def __init__(self, budget: float = 0.3, interval: int = 0, trial: float = 1e-4) -> None:
        require(0.0 <= budget <= 1.0, f"budget: the share of a backward pass must lie in [0, 1], not {budget}")
        require(interval >= 0, f"interval: must be at least 0, not {interval}")
        require(trial > 0.0, f"trial: the trial step must be positive, not {trial}")
        self._budget = budget
        self._interval = interval
        self._trial = trial
        self._first_order_names: list[str] | None = None

    def first_order(self, base: BasePoint) -> Collection[Weight]:
        """Returns the first-order weights, after a new profile if one is due. Called by ``Backprop.prepare``."""
        due = self._interval and base.step.index % self._interval == 0
        if self._first_order_names is None or due:
            self._first_order_names = self._profile(base)
        wanted = set(self._first_order_names)
        return {weight for block in self.blocks for weight in block.weights if block.name in wanted}

    def _profile(self, base: BasePoint) -> list[str]:
        """Makes a profile; returns the names of the blocks that the budget covers."""
        weights = [weight for block in self.blocks for weight in block.weights]
        gradients = base.gradients(weights)
        before = {weight: weight.parameter.detach().clone() for weight in weights}
        try:
            for weight in weights:
                gradient = gradients.pop(weight)
                weight.parameter.data.sub_(self._trial * gradient / (gradient.abs() + 1e-8))
            after = base.gradients(weights)
            # One weight at a time: float32 differences of all weights would double the memory of 16-bit weights.
            products = {weight: self._product(weight, before[weight], after.pop(weight)) for weight in weights}
        finally:
            for weight, theta in before.items():
                weight.parameter.data.copy_(theta)
        gain = [-sum(products[weight] for weight in block.weights) for block in self.blocks]
        importance = (torch.tensor(gain, dtype=torch.float64) / (max(map(abs, gain)) or 1.0)).flip(0)
        # The two costs of all tensors add up to 1,000.
        cost = (self.sizes.double() * (_UNITS / 2 / float(self.sizes.sum()))).long().flip(0).tolist()
        chosen = best_set(importance.tolist(), cost, cost, round(self._budget * _UNITS))
        return [self.blocks[len(self.blocks) - 1 - index].name for index in chosen]

    @staticmethod
    def _product(weight: Weight, before: torch.Tensor, gradient: torch.Tensor) -> float:
        """Returns the product of a gradient and the move of its weight, summed in float64."""
        moved = weight.parameter.detach().float() - before.float()
        return float((gradient.float() * moved).sum(dtype=torch.float64))

    def select(self, step: Step) -> BlockSample:
        """Returns the blocks that are not first order; see ``Selection.select``."""
        ones = torch.ones(len(self.blocks), dtype=torch.float64)
        names = set(self._first_order_names or ())
        return BlockSample(self.blocks, torch.tensor([block.name not in names for block in self.blocks]), ones, ones)

    def report(self, sample: BlockSample) -> SelectionReport:
        """Describes the perturbed blocks, with π of 1 or 0; see ``Selection.report``."""
        perturbed = sample.chosen.double()
        return self._report(
            sample,
            probabilities=perturbed,
            budget=float(perturbed.sum()),
            clipped=float(perturbed.mean()),
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the names of the first-order blocks; see ``Stage.state_dict``."""
        return {"first_order": self._first_order_names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the names of the first-order blocks; see ``Stage.load_state_dict``."""
        self._first_order_names = state["first_order"]
