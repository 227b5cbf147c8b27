"""Perturbs only the smallest weights of each tensor."""

from __future__ import annotations

from torch import Tensor

from zolit.errors import require
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import Weight
from zolit.optim.selection.bit_mask import BitMask, packed
from zolit.optim.selection.fixed_mask import FixedMask


class SmallWeights(FixedMask):
    """Sets m = 1 where |θ| is among the smallest values of its tensor (Sparse-MeZO, arXiv 2402.15751).

    The mask is made from θ before the first step. With ``refresh`` it is made again after that number of steps. Between
    two masks it is constant, although θ moves. While a mask is made, it takes twice the memory of one tensor in
    float32.

    Args:
        density: Share of each tensor to perturb, in (0, 1].
        refresh: Number of steps between two masks; 0 keeps the first mask.

    Raises:
        UserError: If a number is out of its range.
    """

    def __init__(self, density: float = 0.25, refresh: int = 0) -> None:
        super().__init__(density)
        require(refresh >= 0, f"refresh: must be at least 0, not {refresh}")
        self._refresh = refresh

    def prepare(self, base: BasePoint) -> None:
        """Makes the mask if it is due; see ``Stage.prepare``."""
        if self._mask is None or (self._refresh and base.step.index % self._refresh == 0):
            weights = [weight for block in self.blocks for weight in block.weights]
            self._mask = BitMask({weight.name: self._bits(weight) for weight in weights})

    def _bits(self, weight: Weight) -> Tensor:
        size = weight.flat.abs().float()
        kept = max(round(self._density * size.numel()), 1)
        return packed(size <= size.kthvalue(kept).values)
