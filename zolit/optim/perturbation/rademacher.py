"""Random signs: the law with the least variance of a two-point estimate, among laws of independent coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from zolit.optim.blocks import Weight
from zolit.optim.buffers import Scratch
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.randomness import Generators, fold_in


class Rademacher(Perturbation):
    """Draws u from {-1, +1} with equal probability (Spall, SPSA, 1992). One random byte gives eight signs."""

    def __init__(self) -> None:
        self._signs = Scratch()
        self._bits = Scratch(torch.uint8)
        self._generators = Generators()

    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Draws signs in float32; see ``Perturbation.draw``."""
        device, numel = weight.parameter.device, stop - start
        count = -(-numel // 8)
        bits = self._bits.get(count, device).random_(generator=self._generators.seeded(fold_in(key, start), device))
        signs = self._signs.get(8 * count, device).view(count, 8)
        for bit in range(8):
            signs[:, bit] = (bits >> bit) & 1
        return signs.mul_(2.0).sub_(1.0).view(-1)[:numel], 1.0

    def scratch_bytes(self) -> int:
        """Returns the bytes of the buffers for draws; see ``Stage.scratch_bytes``."""
        return self._signs.bytes() + self._bits.bytes()
