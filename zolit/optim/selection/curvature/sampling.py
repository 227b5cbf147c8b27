"""Samples blocks independently: with equal probability, or by curvature scores as CurvZO does."""

from __future__ import annotations

from abc import abstractmethod
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
from zolit.optim.selection.curvature.budget import Budget, check_exploration
from zolit.optim.selection.curvature.formulas import effective_support, fill_and_explore, normalized_entropy
from zolit.optim.selection.curvature.scores import BlockScores

_PURPOSE = key_of("selection")


class BlockSampling(Selection):
    """Samples m_b ~ Bernoulli(π_b) independently, with Σ π = B (CurvZO, arXiv 2603.21725, eqs. (26), (28), (31)).

    If no block is drawn, the block with the largest π is taken. The probability of this case is added to the π of this
    block, so the corrected estimate stays unbiased.

    Args:
        budget: The expected number of sampled blocks, as a share.
        scores: The smoothed scores. With None there are no scores, and an adaptive budget stays at its maximum.
        horvitz_thompson: Whether to multiply the move of a sampled block by 1/π, eq. (28). The estimate is then
            unbiased. Without this factor, the mean move of a block is multiplied by π.
        exploration: φ, the least π of a block, so that 1/π is at most 1/φ. It is not part of the paper.

    Raises:
        UserError: If φ is not below the smallest share of the budget.
    """

    def __init__(
        self, budget: Budget, scores: BlockScores | None, horvitz_thompson: bool = True, exploration: float = 0.0
    ) -> None:
        check_exploration(exploration, budget)
        self._budget = budget
        self._scores = scores
        self._horvitz_thompson = horvitz_thompson
        self._exploration = exploration

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Stores the blocks, and binds the scores; see ``Stage.bind``."""
        super().bind(model, weights, blocks)
        if self._scores is not None:
            self._scores.bind(self.sizes)
        self._describe_scores()

    def _describe_scores(self) -> None:
        self._support, self._entropy = float(len(self.blocks)), 1.0
        if self._scores is not None:
            usable = self._scores.usable
            self._support, self._entropy = effective_support(usable), normalized_entropy(usable)

    @abstractmethod
    def weights(self) -> Tensor:
        """Returns w ≥ 0, shape (n,), float64. π is proportional to w, up to 1. Called once a step."""

    def probabilities(self) -> Tensor:
        """Returns π of the next step, shape (n,), float64, with the budget as its sum. Called once a step."""
        return fill_and_explore(self.weights(), self._budget_share(), self._exploration)

    def _budget_share(self) -> float:
        return self._budget.share(self._support / len(self.blocks), self._entropy)

    def select(self, step: Step) -> BlockSample:
        """Samples blocks independently, and at least one; see ``Selection.select``."""
        self._share = self._budget_share()  # for the report, which follows an update of the scores
        probabilities = self.probabilities()
        purpose = step.key(_PURPOSE)
        draws = [uniform(fold_in(block.key, onto=purpose)) for block in self.blocks]
        chosen = torch.tensor(draws, dtype=torch.float64) < probabilities
        # Of several blocks with the largest π, the largest key decides and not the order in the model.
        chances = zip(probabilities.tolist(), (block.key for block in self.blocks), range(len(draws)), strict=True)
        likeliest = max(chances)[2]
        probabilities[likeliest] += (1.0 - probabilities).prod()
        if not chosen.any():
            chosen[likeliest] = True
        return BlockSample(
            self.blocks,
            chosen=chosen,
            probabilities=probabilities,
            corrections=1.0 / probabilities if self._horvitz_thompson else torch.ones_like(probabilities),
            needs_squared_norms=self._scores is not None,
        )

    def observe(
        self, sample: BlockSample, directions: Directions, derivatives: Sequence[float], squared_norms: Tensor
    ) -> None:
        """Updates the scores; see ``Selection.observe``."""
        if self._scores is not None:
            self._scores.observe(list(derivatives), squared_norms, sample.chosen, sample.probabilities)
            self._describe_scores()

    def report(self, sample: BlockSample) -> SelectionReport:
        """Describes the sample, and the scores after the step; see ``Selection.report``."""
        budget = self._share * len(self.blocks)
        if self._scores is None:
            return self._report(sample, budget=budget)
        return self._report(
            sample,
            scores=self._scores.usable,
            budget=budget,
            effective_support=self._support,
            normalized_entropy=self._entropy,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the scores and the names of their blocks; see ``Stage.state_dict``."""
        return (
            {}
            if self._scores is None
            else {"names": [block.name for block in self.blocks], **self._scores.state_dict()}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the scores; see ``Stage.load_state_dict``.

        Raises:
            UserError: If the scores are those of other blocks.
        """
        if self._scores is None:
            return
        require(
            state.get("names") == [block.name for block in self.blocks],
            "blocks: the scores of the checkpoint are those of other blocks; resume with the blocks of the first run",
        )
        self._scores.load_state_dict(state)
        self._describe_scores()


class UniformSampling(BlockSampling):
    """Samples all blocks with π_b = B / n: an ablation of CurvZO (appendix J, US), for a fixed or adaptive budget."""

    def weights(self) -> Tensor:
        """Returns ones; see ``BlockSampling.weights``."""
        return torch.ones(len(self.blocks), dtype=torch.float64)


class CurvatureSampling(BlockSampling):
    """Samples blocks with π_b ∝ √s̄_b, at most 1: CurvZO, eq. (31)."""

    def weights(self) -> Tensor:
        """Returns √s̄; see ``BlockSampling.weights``."""
        assert self._scores is not None
        return self._scores.usable.sqrt()
