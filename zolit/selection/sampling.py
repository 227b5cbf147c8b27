"""Independent sampling of blocks: uniform, or by curvature scores as CurvZO does."""

from __future__ import annotations

from abc import abstractmethod
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
from zolit.selection.budget import Budget
from zolit.selection.curvature import effective_support, fill_and_explore, normalized_entropy
from zolit.selection.scores import BlockScores

_PURPOSE = name_key("selection")


def check_exploration(exploration: float, budget: Budget) -> None:
    """Checks that a budget leaves something to distribute beyond every unit's least probability.

    Raises:
        UserError: If it does not.
    """
    require(
        0.0 <= exploration < budget.lowest,
        f"exploration: the least probability of a block, {exploration}, must lie in [0, {budget.lowest}), below the "
        "least share that the budget may give: lower it, or raise the budget",
    )


class BlockSampling(Selection):
    """m_b ~ Bernoulli(π_b), independently, with Σ π = B (CurvZO, arXiv 2603.21725, eqs. (26), (28) and (31)).

    A step on which no block is drawn takes the likeliest one, and π of this block counts the chance of that, so that
    the corrected estimate stays unbiased.

    Args:
        budget: How many blocks, as a share.
        scores: The smoothed scores; None tracks none, and an adaptive budget then stays at its maximum.
        horvitz_thompson: Multiply what a chosen block's weights move by 1/π, eq. (28): unbiased. Without it a block
            moves by π on average.
        exploration: φ, the least π of any block: 1/π stays below 1/φ. Not of the paper.

    Raises:
        UserError: If φ is not below the least share that the budget may give.
    """

    def __init__(
        self, budget: Budget, scores: BlockScores | None, horvitz_thompson: bool = True, exploration: float = 0.0
    ) -> None:
        check_exploration(exploration, budget)
        self._budget = budget
        self._scores = scores
        self._horvitz_thompson = horvitz_thompson
        self._exploration = exploration

    def bind(self, blocks: Sequence[Block], seed: int) -> None:
        """Takes the blocks; see the base class."""
        super().bind(blocks, seed)
        if self._scores is not None:
            self._scores.bind(self._sizes)
        self._describe_scores()

    def _describe_scores(self) -> None:
        self._support, self._entropy = float(len(self._blocks)), 1.0
        if self._scores is not None:
            usable = self._scores.usable
            self._support, self._entropy = effective_support(usable), normalized_entropy(usable)

    @abstractmethod
    def weights(self) -> Tensor:
        """Returns what π is proportional to until it reaches 1, shape (n,), float64."""

    def probabilities(self) -> Tensor:
        """Returns π for the next step, shape (n,), float64; it sums to the budget."""
        self._share = self._budget.share(self._support / len(self._blocks), self._entropy)
        return fill_and_explore(self.weights(), self._share, self._exploration)

    def select(self, step: int) -> Choice:
        """Samples the blocks of a step."""
        probabilities = self.probabilities()
        purpose = mix(self._seed, _PURPOSE, step)
        draws = [uniform(mix(block.key, onto=purpose)) for block in self._blocks]
        chosen = torch.tensor(draws, dtype=torch.float64) < probabilities
        # Of several likeliest ones that which has the largest key, not that which comes first in the model.
        chances = zip(probabilities.tolist(), (block.key for block in self._blocks), range(len(draws)), strict=True)
        likeliest = max(chances)[2]
        probabilities[likeliest] += (1.0 - probabilities).prod()
        if not chosen.any():
            chosen[likeliest] = True
        return Choice(
            chosen=chosen,
            probabilities=probabilities,
            corrections=1.0 / probabilities if self._horvitz_thompson else torch.ones_like(probabilities),
            measure_energies=self._scores is not None,
        )

    def observe(self, choice: Choice, directions: Directions, derivatives: Sequence[float]) -> None:
        """Updates the scores."""
        if self._scores is not None:
            energies = directions.energies
            self._scores.observe(list(derivatives), energies, choice.chosen, choice.probabilities)
            self._describe_scores()

    def report(self, choice: Choice) -> SelectionReport:
        """Says what was sampled, and the scores as they are now."""
        scores = self._scores
        return SelectionReport(
            names=self._names,
            sizes=self._sizes,
            probabilities=choice.probabilities,
            chosen=choice.chosen,
            scores=None if scores is None else scores.usable,
            units=len(self._blocks),
            budget=self._share * len(self._blocks),
            clipped=float((choice.probabilities >= 1.0).double().mean()),
            perturbed_parameters=int(self._sizes[choice.chosen].sum()),
            effective_support=None if scores is None else self._support,
            normalized_entropy=None if scores is None else self._entropy,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the scores with the names of their blocks."""
        return {} if self._scores is None else {"names": list(self._names), **self._scores.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up scores.

        Raises:
            UserError: If the state is of other blocks.
        """
        if self._scores is None:
            return
        require(
            state.get("names") == list(self._names),
            "blocks: the checkpoint's scores belong to other blocks; resume with the blocks that it was made with",
        )
        self._scores.load_state_dict(state)
        self._describe_scores()


class Uniform(BlockSampling):
    """π_b = B / n: the ablation of CurvZO (appendix J, US), with a fixed or an adaptive budget."""

    def weights(self) -> Tensor:
        """Returns ones."""
        return torch.ones(len(self._blocks), dtype=torch.float64)


class Curvature(BlockSampling):
    """π_b ∝ √s̄_b, at most 1: CurvZO, eq. (31)."""

    def weights(self) -> Tensor:
        """Returns √s̄."""
        assert self._scores is not None
        return self._scores.usable.sqrt()
