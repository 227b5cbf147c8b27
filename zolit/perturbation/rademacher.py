"""Random signs: the law of least variance for a two-point estimate along independent coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.hashing import mix
from zolit.perturbation.base import Perturbation
from zolit.scratch import Generators, Scratch


class Rademacher(Perturbation):
    """u in {-1, +1} with equal chances (Spall, SPSA, 1992), eight signs to a random byte."""

    def __init__(self) -> None:
        self._signs = Scratch()
        self._bits = Scratch(torch.uint8)
        self._generators = Generators()

    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Draws signs in float32; see the base class."""
        device, numel = weight.parameter.device, stop - start
        octets = -(-numel // 8)
        bits = self._bits.take(octets, device).random_(generator=self._generators.seeded(mix(key, start), device))
        signs = self._signs.take(8 * octets, device).view(octets, 8)
        for place in range(8):
            signs[:, place] = (bits >> place) & 1
        return signs.mul_(2.0).sub_(1.0).view(-1)[:numel], 1.0

    def scratch_bytes(self) -> int:
        """Returns the bytes of the buffers drawn into."""
        return self._signs.bytes() + self._bits.bytes()
