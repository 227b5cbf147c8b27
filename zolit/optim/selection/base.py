"""Stage 1 of a step: chooses the blocks to perturb, with known probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zolit.optim.blocks import Block, BlockSample, Weight
from zolit.optim.perturbation.directions import Directions
from zolit.optim.randomness import Step
from zolit.optim.report import SelectionReport
from zolit.optim.stage import Stage


class Selection(Stage):
    """Samples the blocks of each step, and may learn from the measurements of the step.

    Attributes:
        masks: Whether the selection leaves out single parameters of sampled blocks.
        selects_all: Whether every block is sampled in every step.
        leaves_to_backprop: Whether the blocks outside of the sample are to be trained by backpropagation.
        nests: Whether the selection can choose among the blocks of one layer, within ``OneLayer``.
        blocks: The n blocks of the model; set by ``bind``.
        sizes: Number of parameters of each block, shape (n,), int64; set by ``bind``.
    """

    masks: bool = False
    selects_all: bool = False
    leaves_to_backprop: bool = False
    nests: bool = True
    blocks: Sequence[Block]
    sizes: Tensor

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Stores the blocks and their sizes; see ``Stage.bind``."""
        self.blocks = list(blocks)
        self.sizes = torch.tensor([block.numel for block in blocks])

    @abstractmethod
    def select(self, step: Step) -> BlockSample:
        """Samples the blocks of a step. Called once a step, after all ``Stage.prepare`` calls.

        It is also called if a loss in ``Stage.prepare`` was not finite. The step is then skipped.

        Args:
            step: The step. Keys of random choices are hashed from it.
        """

    def observe(
        self, sample: BlockSample, directions: Directions, derivatives: Sequence[float], squared_norms: Tensor
    ) -> None:
        """Learns from a step. Called once a step, after the update; not called if the step is skipped.

        Args:
            sample: The sample that ``select`` returned.
            directions: The directions of the step.
            derivatives: Δ, the derivative of the loss along each direction, shape (k,).
            squared_norms: ‖u_b‖² of each direction over each block, shape (k, n), float64; shape (0, 0) if the sample
                does not need them.
        """

    def report(self, sample: BlockSample) -> SelectionReport:
        """Describes the sample and the scores. Called once a step, after ``observe``; also if the step is skipped."""
        return self._report(sample)

    def _report(self, sample: BlockSample, **known: Any) -> SelectionReport:
        """Returns the report for a sample of whole blocks, with some fields replaced by ``known``."""
        fields: dict[str, Any] = {
            "names": tuple(block.name for block in self.blocks),
            "sizes": self.sizes,
            "probabilities": sample.probabilities,
            "chosen": sample.chosen,
            "scores": None,
            "units": len(self.blocks),
            "budget": float(sample.probabilities.sum()),
            "clipped": float((sample.probabilities >= 1.0).double().mean()),
            "perturbed_parameters": int(self.sizes[sample.chosen].sum()),
            "effective_support": None,
            "normalized_entropy": None,
        }
        return SelectionReport(**{**fields, **known})
