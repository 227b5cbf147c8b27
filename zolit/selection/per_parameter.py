"""CurvZO's first form: every single parameter is sampled by a score of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zolit.blocks import Block, Weight
from zolit.choice import Choice
from zolit.directions import Directions
from zolit.errors import require
from zolit.hashing import mix, name_key
from zolit.report import SelectionReport
from zolit.scratch import Generators
from zolit.selection.base import Selection
from zolit.selection.budget import Budget
from zolit.selection.curvature import effective_support, fill_and_explore, normalized_entropy
from zolit.selection.sampling import check_exploration
from zolit.selection.scores import ScoreRule, Smoothing

_PURPOSE = name_key("selection of parameters")


class _Mask:
    """m_i ~ Bernoulli(π_i) of one step; each piece is drawn again from its key.

    ``perturbed`` is how many were drawn, and, on a step that is skipped before they are counted, their expected number.
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
        generator = self._generators.seeded(mix(self._key, weight.key, start), pi.device)
        return (torch.empty_like(pi).uniform_(generator=generator) < pi).float()

    def correction(self, weight: Weight, start: int, stop: int) -> Tensor:
        pi = self._pi(weight, start, stop)
        return pi.reciprocal() if self._correct else torch.ones_like(pi)


class PerParameter(Selection):
    """u_i = m_i z_i, m_i ~ Bernoulli(π_i), π_i = min(1, c √s̄_i) (CurvZO, arXiv 2603.21725, section 3, eqs. (5)-(20)).

    Keeps a float32 score and a float32 probability per trainable parameter and passes over them several times a step,
    on a GPU with waits of the host in between: meant for adapters and other small sets of weights, on one device.

    Args:
        budget: How many parameters, as a share.
        smoothing: β of eq. (8), in (0, 1].
        rule: See ``zolit.selection.scores.ScoreRule``.
        horvitz_thompson: Multiply what a chosen parameter moves by 1/π, eq. (12).
        exploration: φ, the least π of any parameter. Not of the paper.

    Raises:
        UserError: If φ is not below the least share that the budget may give, β out of its range or the rule unknown.
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

    def bind(self, blocks: Sequence[Block], seed: int) -> None:
        """Takes the blocks; see the base class."""
        super().bind(blocks, seed)
        self._offsets: dict[Weight, int] = {}
        total = 0
        for block in blocks:
            for weight in block.weights:
                self._offsets[weight] = total
                total += weight.parameter.numel()
        device = blocks[0].weights[0].parameter.device
        self._scores = torch.zeros(total, dtype=torch.float32, device=device)
        self._support, self._entropy = float(total), 1.0

    def select(self, step: int) -> Choice:
        """Samples the parameters of a step."""
        self._scores = self._scores.to(next(iter(self._offsets)).parameter.device)
        share = self._budget.share(self._support / self._scores.numel(), self._entropy)
        pi = fill_and_explore(self._scores.clamp(min=0.0).sqrt_(), share, self._exploration)
        self._held = 2 * pi.nbytes
        mask = _Mask(pi, self._offsets, mix(self._seed, _PURPOSE, step), self._horvitz_thompson)
        blocks = len(self._blocks)
        means = torch.stack([part.mean(dtype=torch.float64) for part in self._parts(pi)])
        return Choice(
            chosen=torch.ones(blocks, dtype=torch.bool),
            probabilities=means.cpu(),
            corrections=torch.ones(blocks, dtype=torch.float64),
            measure_energies=True,
            mask=mask,
        )

    def _parts(self, values: Tensor) -> list[Tensor]:
        return list(torch.split(values, self._sizes.tolist()))

    def observe(self, choice: Choice, directions: Directions, derivatives: Sequence[float]) -> None:
        """Updates the scores, drawing the directions once more."""
        mask = choice.mask
        assert isinstance(mask, _Mask)
        unbiased = self._smoothing.rule == "unbiased"
        totals = directions.energies.sum(1).tolist()
        factors = [d**2 / (1.0 if unbiased else t) if t > 0 else 0.0 for d, t in zip(derivatives, totals, strict=True)]
        if not self._started and any(derivatives):
            self._started = True
            if not unbiased:
                self._scores.fill_(sum(d**2 for d in derivatives) / len(derivatives) / float(mask.probabilities.sum()))
        perturbed = torch.zeros((), dtype=torch.int64, device=self._scores.device)
        for weight, offset in self._offsets.items():
            for start, stop in directions.ranges(weight):
                sampled = mask.indicator(weight, start, stop) > 0
                perturbed += sampled.sum()
                scores = self._scores[offset + start : offset + stop]
                pi = mask.probabilities[offset + start : offset + stop]
                new = torch.zeros_like(scores)
                for direction, factor in enumerate(factors):
                    u, scale = directions.draw(direction, weight, start, stop)
                    energy = (u * scale).square_()
                    if unbiased:
                        energy.sub_(pi).div_(pi * (3.0 - pi))
                    new.add_(energy, alpha=factor / len(factors))
                scores.copy_(self._smoothing.smooth(scores, new, sampled, pi))
        mask.perturbed = int(perturbed)
        self._describe_scores()

    def _describe_scores(self) -> None:
        usable = self._scores.clamp(min=0.0)
        self._support, self._entropy = effective_support(usable), normalized_entropy(usable)

    def scratch_bytes(self) -> int:
        """Returns the bytes of scores and probabilities."""
        return self._held

    def report(self, choice: Choice) -> SelectionReport:
        """Says what was sampled, block by block."""
        mask = choice.mask
        assert isinstance(mask, _Mask)
        return SelectionReport(
            names=self._names,
            sizes=self._sizes,
            probabilities=choice.probabilities,
            chosen=choice.chosen,
            scores=torch.stack([p.clamp(min=0.0).sum(dtype=torch.float64) for p in self._parts(self._scores)]).cpu(),
            units=self._scores.numel(),
            budget=float(mask.probabilities.sum(dtype=torch.float64)),
            clipped=float((mask.probabilities >= 1.0).double().mean()),
            perturbed_parameters=mask.perturbed,
            effective_support=self._support,
            normalized_entropy=self._entropy,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the scores of each weight by its name."""
        return {
            "scores": {
                weight.name: self._scores[offset : offset + weight.parameter.numel()].clone()
                for weight, offset in self._offsets.items()
            },
            "started": self._started,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up scores.

        Raises:
            UserError: If the state is of other weights, or of blocks.
        """
        names = {weight.name for weight in self._offsets}
        require(
            set(state.get("scores", {})) == names,
            "blocks: the checkpoint's scores are not of these single parameters; resume with the blocks that it was "
            "made with",
        )
        for weight, offset in self._offsets.items():
            self._scores[offset : offset + weight.parameter.numel()] = state["scores"][weight.name]
        self._started = bool(state["started"])
        self._describe_scores()
