"""Perturb every block, always: MeZO's selection."""

from __future__ import annotations

import torch

from zolit.choice import Choice
from zolit.report import SelectionReport
from zolit.selection.base import Selection


class Everything(Selection):
    """π = 1 for every block."""

    def select(self, step: int) -> Choice:
        """Chooses all blocks."""
        count = len(self._blocks)
        ones = torch.ones(count, dtype=torch.float64)
        return Choice(chosen=torch.ones(count, dtype=torch.bool), probabilities=ones, corrections=ones)

    def report(self, choice: Choice) -> SelectionReport:
        """Says that all was chosen; there are no scores."""
        return SelectionReport(
            names=self._names,
            sizes=self._sizes,
            probabilities=choice.probabilities,
            chosen=choice.chosen,
            scores=None,
            units=len(self._blocks),
            budget=float(len(self._blocks)),
            clipped=1.0,
            perturbed_parameters=int(self._sizes.sum()),
            effective_support=None,
            normalized_entropy=None,
        )
