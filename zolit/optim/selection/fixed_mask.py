"""Selections of single parameters by a mask that is constant for many steps."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from zolit.errors import require
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import BlockSample
from zolit.optim.randomness import Step
from zolit.optim.report import SelectionReport
from zolit.optim.selection.base import Selection
from zolit.optim.selection.bit_mask import BitMask


class FixedMask(Selection):
    """Selects the parameters of a mask, which subclasses make in ``prepare``. It takes one bit for each parameter.

    Args:
        density: Share of the parameters to perturb, in (0, 1].

    Raises:
        UserError: If the share is out of its range.
    """

    masks = True

    def __init__(self, density: float) -> None:
        require(0.0 < density <= 1.0, f"density: the share of parameters must lie in (0, 1], not {density}")
        self._density = density
        self._mask: BitMask | None = None

    @abstractmethod
    def prepare(self, base: BasePoint) -> None:
        """Makes the mask if it is due; see ``Stage.prepare``."""

    def select(self, step: Step) -> BlockSample:
        """Returns the mask, and the blocks that contain a parameter with m = 1; see ``Selection.select``."""
        count = len(self.blocks)
        if self._mask is None:  # the loss in prepare was not finite, and the step will be skipped
            shares = torch.ones(count, dtype=torch.float64)
        else:
            inside = [sum(self._mask.counts[weight.name] for weight in block.weights) for block in self.blocks]
            shares = torch.tensor(inside, dtype=torch.float64) / self.sizes
        return BlockSample(
            self.blocks,
            chosen=shares > 0,
            probabilities=shares,
            corrections=torch.ones(count, dtype=torch.float64),
            mask=self._mask,
        )

    def report(self, sample: BlockSample) -> SelectionReport:
        """Describes the share of each block that is perturbed; see ``Selection.report``."""
        perturbed = round(float((sample.probabilities * self.sizes)[sample.chosen].sum()))
        units = int(self.sizes.sum())
        return self._report(
            sample, units=units, budget=float(perturbed), clipped=perturbed / units, perturbed_parameters=perturbed
        )

    def scratch_bytes(self) -> int:
        """Returns the bytes of the mask; see ``Stage.scratch_bytes``."""
        return self._mask.nbytes() if self._mask else 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the bits of the mask by the names of the weights; see ``Stage.state_dict``."""
        return {"bits": {name: bits.clone() for name, bits in self._mask.bits.items()} if self._mask else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the mask; see ``Stage.load_state_dict``."""
        self._mask = BitMask(state["bits"]) if state["bits"] is not None else None
