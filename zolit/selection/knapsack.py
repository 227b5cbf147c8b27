"""Which tensors are worth a backward pass, and which move by forward passes alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from zolit.blocks import Weight
from zolit.choice import Choice
from zolit.closure import Look
from zolit.errors import require
from zolit.report import SelectionReport
from zolit.selection.base import Selection

_UNITS = 1000


def best_set(importance: Sequence[float], own: Sequence[int], passing: Sequence[int], budget: int) -> list[int]:
    """Chooses tensors of the largest importance whose backward pass is within a budget, exactly.

    Tensors are in the order in which a backward pass comes to them. It costs own[k] to form the gradient of tensor k,
    and passing[k] to go past it; and whoever wants tensor k's gradient must go past all up to k:
    Σ_{k∈S} own[k] + Σ_{k≤max S} passing[k] ≤ budget (after GreenTrainer's selection).

    Args:
        importance: Shape (n,).
        own: Whole numbers, shape (n,).
        passing: Whole numbers, shape (n,).
        budget: A whole number.

    Returns:
        Places of the chosen ones, ascending; empty where nothing of positive importance fits.
    """
    count = len(importance)
    best = torch.zeros(budget + 1, dtype=torch.float64)  # of the tensors before k, by what they may cost
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
            with_it = best.clone()
            with_it[own[k] :] = best[: budget + 1 - own[k]] + importance[k]
            with_it[: own[k]] = -torch.inf
            taken[k] = with_it > best
            best = torch.maximum(best, with_it)
    chosen = [deepest] if deepest >= 0 else []
    for k in range(deepest - 1, -1, -1):
        if taken[k, rest]:
            chosen.append(k)
            rest -= own[k]
    return sorted(chosen)


class Knapsack(Selection):
    """The blocks that a backward budget pays for are first order; all others are perturbed (Hi-ZFO-style).

    Hi-ZFO's text (arXiv 2601.05501) was not recovered in full; profiling and selection are reconstructed from
    GreenTrainer, on which they seem to build. A trial step of Adam's first kind moves all weights by dw; with the
    gradient g₁ there, I_k = -Σ g₁ ⊙ dw over max |I| is a tensor's importance. A matrix' own gradient and the way past
    it cost as much as each other and go by its number of parameters. Profiling takes copies of the weights and their
    gradients, for a moment.

    Args:
        budget: ρ, the share of a whole backward pass, in [0, 1].
        interval: Steps between two profiles; 0 keeps the first.
        trial: How far the trial step moves a weight.

    Raises:
        UserError: If a number is out of its range.
    """

    def __init__(self, budget: float = 0.3, interval: int = 0, trial: float = 1e-4) -> None:
        require(0.0 <= budget <= 1.0, f"budget: the share of a backward pass must lie in [0, 1], not {budget}")
        require(interval >= 0, f"interval: must be at least 0, not {interval}")
        require(trial > 0.0, f"trial: the trial step must be positive, not {trial}")
        self._budget = budget
        self._interval = interval
        self._trial = trial
        self._names_of_set: list[str] | None = None

    def first_order(self, look: Look) -> Collection[Weight]:
        """Returns the weights that are trained by backpropagation, profiled where that is due."""
        due = self._interval and look.step % self._interval == 0
        if self._names_of_set is None or due:
            self._names_of_set = self._profile(look)
        wanted = set(self._names_of_set)
        return {weight for block in self._blocks for weight in block.weights if block.name in wanted}

    def _profile(self, look: Look) -> list[str]:
        """Returns the names of the blocks that the budget pays for."""
        weights = [weight for block in self._blocks for weight in block.weights]
        gradients = look.gradients(weights)
        before = {weight: weight.parameter.detach().clone() for weight in weights}
        try:
            for weight in weights:
                gradient = gradients.pop(weight)
                weight.parameter.data.sub_(self._trial * gradient / (gradient.abs() + 1e-8))
            after = look.gradients(weights)
            moved = {weight: weight.parameter.detach().float() - before[weight].float() for weight in weights}
        finally:
            for weight, theta in before.items():
                weight.parameter.data.copy_(theta)
        gain = [
            -sum(float((after[weight].float() * moved[weight]).sum(dtype=torch.float64)) for weight in block.weights)
            for block in self._blocks
        ]
        importance = (torch.tensor(gain, dtype=torch.float64) / (max(map(abs, gain)) or 1.0)).flip(0)
        # Both costs of all tensors together are 1,000.
        cost = (self._sizes.double() * (_UNITS / 2 / float(self._sizes.sum()))).long().flip(0).tolist()
        chosen = best_set(importance.tolist(), cost, cost, round(self._budget * _UNITS))
        return [self._blocks[len(self._blocks) - 1 - place].name for place in chosen]

    def select(self, step: int) -> Choice:
        """Chooses the blocks that move by forward passes."""
        ones = torch.ones(len(self._blocks), dtype=torch.float64)
        inside = set(self._names_of_set or ())
        return Choice(torch.tensor([block.name not in inside for block in self._blocks]), ones, ones)

    def report(self, choice: Choice) -> SelectionReport:
        """Says which are perturbed."""
        return SelectionReport(
            names=self._names,
            sizes=self._sizes,
            probabilities=choice.chosen.double().clamp(min=1e-12),
            chosen=choice.chosen,
            scores=None,
            units=len(self._blocks),
            budget=float(choice.chosen.sum()),
            clipped=float(choice.chosen.double().mean()),
            perturbed_parameters=int(self._sizes[choice.chosen].sum()),
            effective_support=None,
            normalized_entropy=None,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the names of the first-order blocks."""
        return {"first_order": self._names_of_set}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them up."""
        self._names_of_set = state["first_order"]
