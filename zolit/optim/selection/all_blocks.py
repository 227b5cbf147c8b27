"""The selection of MeZO: every block in every step."""

from __future__ import annotations

import torch

from zolit.optim.blocks import BlockSample
from zolit.optim.randomness import Step
from zolit.optim.selection.base import Selection


class AllBlocks(Selection):
    """Samples every block with probability 1."""

    selects_all = True

    def select(self, step: Step) -> BlockSample:
        """Returns all blocks; see ``Selection.select``."""
        count = len(self.blocks)
        ones = torch.ones(count, dtype=torch.float64)
        return BlockSample(
            self.blocks, chosen=torch.ones(count, dtype=torch.bool), probabilities=ones, corrections=ones
        )
