"""Selections of single parameters by a mask that is made once, or now and then."""

from __future__ import annotations

from typing import Any

import torch

from zolit.choice import Choice
from zolit.errors import require
from zolit.report import SelectionReport
from zolit.selection.base import Selection
from zolit.selection.bits import BitMask


class FixedMask(Selection):
    """What all masks have in common; subclasses make theirs in ``prepare``. It takes one bit a parameter.

    Args:
        density: Share of the parameters that take part, in (0, 1].

    Raises:
        UserError: If the share is out of its range.
    """

    masks = True

    def __init__(self, density: float) -> None:
        require(0.0 < density <= 1.0, f"density: the share of parameters must lie in (0, 1], not {density}")
        self._density = density
        self._mask: BitMask | None = None

    def select(self, step: int) -> Choice:
        """Chooses the blocks in which a parameter takes part."""
        count = len(self._blocks)
        if self._mask is None:  # the look that would have made it was not finite, and nothing will move
            shares = torch.ones(count, dtype=torch.float64)
        else:
            inside = [sum(self._mask.counts[weight.name] for weight in block.weights) for block in self._blocks]
            shares = torch.tensor(inside, dtype=torch.float64) / self._sizes
        return Choice(
            chosen=shares > 0,
            probabilities=shares.clamp(min=1e-12),
            corrections=torch.ones(count, dtype=torch.float64),
            mask=self._mask,
        )

    def report(self, choice: Choice) -> SelectionReport:
        """Says how much of each block takes part."""
        perturbed = round(float((choice.probabilities * self._sizes)[choice.chosen].sum()))
        units = int(self._sizes.sum())
        return SelectionReport(
            names=self._names,
            sizes=self._sizes,
            probabilities=choice.probabilities,
            chosen=choice.chosen,
            scores=None,
            units=units,
            budget=float(perturbed),
            clipped=perturbed / units,
            perturbed_parameters=perturbed,
            effective_support=None,
            normalized_entropy=None,
        )

    def scratch_bytes(self) -> int:
        """Returns the bytes of the mask."""
        return self._mask.nbytes() if self._mask else 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the mask's bits by the weights' names."""
        return {"bits": {name: bits.clone() for name, bits in self._mask.bits.items()} if self._mask else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a mask."""
        self._mask = BitMask(state["bits"]) if state["bits"] is not None else None
