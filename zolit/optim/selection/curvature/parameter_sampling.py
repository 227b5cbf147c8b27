"""The first form of CurvZO: each parameter has a separate score and is sampled by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.blocks import Block, BlockSample, Weight
from zolit.optim.perturbation.directions import Directions
from zolit.optim.randomness import Generators, Step, fold_in, key_of
from zolit.optim.report import SelectionReport
from zolit.optim.selection.base import Selection
from zolit.optim.selection.curvature.budget import Budget, check_exploration
from zolit.optim.selection.curvature.formulas import effective_support, fill_and_explore, normalized_entropy
from zolit.optim.selection.curvature.scores import ScoreRule, Smoothing

_PURPOSE = key_of("selection of parameters")


class _Mask:
    """The mask m_i ~ Bernoulli(π_i) of one step. Each piece is drawn again from its key. Implements ``CoordinateMask``.

    ``perturbed`` is the number of sampled parameters. Until ``ParameterSampling.observe`` counts them, it is their
    expected number.
    """

    def __init__(self, probabilities: Tensor, offsets: dict[Weight, int], key: int, correct: bool) -> None:
        self.probabilities = probabilities
        self._offsets = offsets
        self._key = key
        self._correct = correct
        self._generators = Generators()
        self.perturbed = round(float(probabilities.sum(dtype=torch.float64)))

    def _pi(self, weight: Weight, start: int, stop: int) -> Tensor:
        offset = self._offsets[weight]
        return self.probabilities[offset + start : offset + stop]

    def indicator(self, weight: Weight, start: int, stop: int) -> Tensor:
        pi = self._pi(weight, start, stop)
        generator = self._generators.seeded(fold_in(self._key, weight.key, start), pi.device)
        return (torch.empty_like(pi).uniform_(generator=generator) < pi).float()

    def correction(self, weight: Weight, start: int, stop: int) -> Tensor:
        pi = self._pi(weight, start, stop)
        return pi.reciprocal() if self._correct else torch.ones_like(pi)


class ParameterSampling(Selection):
    """Samples single parameters by their curvature scores (CurvZO, arXiv 2603.21725, section 3, eqs. (5)-(20)).

    u_i = m_i z_i, with m_i ~ Bernoulli(π_i) and π_i = min(1, c √s̄_i). The selection keeps a float32 score and a float32
    probability for each trainable parameter, and passes over them several times a step. On a GPU the host waits between
    these passes. Use it for adapters and other small sets of weights, on one device.

    Args:
        budget: The expected number of sampled parameters, as a share.
        smoothing: β of eq. (8), in (0, 1].
        rule: See ``zolit.optim.ScoreRule``.
        horvitz_thompson: Whether to multiply the move of a sampled parameter by 1/π, eq. (12).
        exploration: φ, the least π of a parameter. It is not part of the paper.

    Raises:
        UserError: If φ is not below the smallest share of the budget, if β is out of its range, or if the rule is
            unknown.
    """

    masks = True

    def __init__(
        self,
        budget: Budget,
        smoothing: float = 0.1,
        rule: ScoreRule = "sampled",
        horvitz_thompson: bool = True,
        exploration: float = 0.05,
    ) -> None:
        check_exploration(exploration, budget)
        self._budget = budget
        self._smoothing = Smoothing(smoothing, rule)
        self._horvitz_thompson = horvitz_thompson
        self._exploration = exploration
        self._started = False
        self._held = 0

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Stores the blocks, and sets all scores to 0; see ``Stage.bind``."""
        super().bind(model, weights, blocks)
        self._offsets: dict[Weight, int] = {}
        total = 0
        for block in blocks:
            for weight in block.weights:
                self._offsets[weight] = total
                total += weight.parameter.numel()
        device = blocks[0].weights[0].parameter.device
        self._scores = torch.zeros(total, dtype=torch.float32, device=device)
        self._support, self._entropy = float(total), 1.0

    def select(self, step: Step) -> BlockSample:
        """Samples the parameters of a step; see ``Selection.select``."""
        self._scores = self._scores.to(next(iter(self._offsets)).parameter.device)
        share = self._budget.share(self._support / self._scores.numel(), self._entropy)
        pi = fill_and_explore(self._scores.clamp(min=0.0).sqrt_(), share, self._exploration)
        self._held = 2 * pi.nbytes
        mask = _Mask(pi, self._offsets, step.key(_PURPOSE), self._horvitz_thompson)
        blocks = len(self.blocks)
        means = torch.stack([part.mean(dtype=torch.float64) for part in self._parts(pi)])
        return BlockSample(
            self.blocks,
            chosen=torch.ones(blocks, dtype=torch.bool),
            probabilities=means.cpu(),
            corrections=torch.ones(blocks, dtype=torch.float64),
            needs_squared_norms=True,
            mask=mask,
        )

    def _parts(self, values: Tensor) -> list[Tensor]:
        return list(torch.split(values, self.sizes.tolist()))

    def observe(
        self, sample: BlockSample, directions: Directions, derivatives: Sequence[float], squared_norms: Tensor
    ) -> None:
        """Updates the scores from one more draw of the directions; see ``Selection.observe``."""
        mask = sample.mask
        assert isinstance(mask, _Mask)
        unbiased = self._smoothing.rule == "unbiased"
        totals = squared_norms.sum(1).tolist()
        factors = [d**2 / (1.0 if unbiased else t) if t > 0 else 0.0 for d, t in zip(derivatives, totals, strict=True)]
        if not self._started and any(derivatives):
            self._started = True
            if not unbiased:
                self._scores.fill_(sum(d**2 for d in derivatives) / len(derivatives) / float(mask.probabilities.sum()))
        perturbed = torch.zeros((), dtype=torch.int64, device=self._scores.device)
        for weight, offset in self._offsets.items():
            for start, stop in directions.chunks(weight):
                sampled = mask.indicator(weight, start, stop) > 0
                perturbed += sampled.sum()
                scores = self._scores[offset + start : offset + stop]
                pi = mask.probabilities[offset + start : offset + stop]
                new = torch.zeros_like(scores)
                for direction, factor in enumerate(factors):
                    u, scale = directions.draw(direction, weight, start, stop)
                    square = (u * scale).square_()
                    if unbiased:
                        square.sub_(pi).div_(pi * (3.0 - pi))
                    new.add_(square, alpha=factor / len(factors))
                scores.copy_(self._smoothing.smooth(scores, new, sampled, pi))
        mask.perturbed = int(perturbed)
        self._describe_scores()

    def _describe_scores(self) -> None:
        usable = self._scores.clamp(min=0.0)
        self._support, self._entropy = effective_support(usable), normalized_entropy(usable)

    def scratch_bytes(self) -> int:
        """Returns the bytes of scores and probabilities; see ``Stage.scratch_bytes``."""
        return self._held

    def report(self, sample: BlockSample) -> SelectionReport:
        """Describes the sample, block by block; see ``Selection.report``."""
        mask = sample.mask
        assert isinstance(mask, _Mask)
        return self._report(
            sample,
            scores=torch.stack([p.clamp(min=0.0).sum(dtype=torch.float64) for p in self._parts(self._scores)]).cpu(),
            units=self._scores.numel(),
            budget=float(mask.probabilities.sum(dtype=torch.float64)),
            clipped=float((mask.probabilities >= 1.0).double().mean()),
            perturbed_parameters=mask.perturbed,
            effective_support=self._support,
            normalized_entropy=self._entropy,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the scores of each weight by its name; see ``Stage.state_dict``."""
        return {
            "scores": {
                weight.name: self._scores[offset : offset + weight.parameter.numel()].clone()
                for weight, offset in self._offsets.items()
            },
            "started": self._started,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the scores; see ``Stage.load_state_dict``.

        Raises:
            UserError: If the scores are those of other weights, or those of blocks.
        """
        names = {weight.name for weight in self._offsets}
        require(
            set(state.get("scores", {})) == names,
            "blocks: the scores of the checkpoint are not those of these single parameters; resume with the blocks "
            "of the first run",
        )
        for weight, offset in self._offsets.items():
            self._scores[offset : offset + weight.parameter.numel()] = state["scores"][weight.name]
        self._started = bool(state["started"])
        self._describe_scores()
