"""Only small weights take part."""

from __future__ import annotations

from torch import Tensor

from zolit.blocks import Weight
from zolit.closure import Look
from zolit.errors import require
from zolit.selection.bits import BitMask, packed
from zolit.selection.fixed_mask import FixedMask


class SmallWeights(FixedMask):
    """m = 1 where |θ| is among the smallest of its tensor (Sparse-MeZO, arXiv 2402.15751).

    The mask is made of θ before the first step and, where asked for, again every so many steps; between, it stays as
    it is however θ moves. Making it takes the memory of one tensor in float32 twice, for a moment.

    Args:
        density: Share of each tensor that takes part, in (0, 1].
        refresh: Steps between two masks; 0 keeps the first.

    Raises:
        UserError: If a number is out of its range.
    """

    def __init__(self, density: float = 0.25, refresh: int = 0) -> None:
        super().__init__(density)
        require(refresh >= 0, f"refresh: must be at least 0, not {refresh}")
        self._refresh = refresh

    def prepare(self, look: Look) -> None:
        """Makes the mask where it is due; see the base class."""
        if self._mask is None or (self._refresh and look.step % self._refresh == 0):
            weights = [weight for block in self._blocks for weight in block.weights]
            self._mask = BitMask({weight.name: self._bits(weight) for weight in weights})

    def _bits(self, weight: Weight) -> Tensor:
        size = weight.flat.abs().float()
        kept = max(round(self._density * size.numel()), 1)
        return packed(size <= size.kthvalue(kept).values)
