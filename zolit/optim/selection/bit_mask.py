"""A mask of parameters that takes one bit for each parameter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from zolit.optim.blocks import Weight


class BitMask:
    """A set of single parameters. It implements ``CoordinateMask``, and does not change from step to step.

    Args:
        bits: The bits of each weight by its name, eight parameters in a byte, uint8, shape (numel / 8 rounded up,).
    """

    def __init__(self, bits: Mapping[str, Tensor]) -> None:
        self.bits = dict(bits)
        self.counts = {name: int(_unpacked(packed).sum()) for name, packed in bits.items()}

    def indicator(self, weight: Weight, start: int, stop: int) -> Tensor:
        """Returns m of a piece, 1 or 0 for each parameter; see ``CoordinateMask.indicator``."""
        packed = self.bits[weight.name]
        if packed.device != weight.parameter.device:
            packed = self.bits[weight.name] = packed.to(weight.parameter.device)
        first = start // 8
        return _unpacked(packed[first : -(-stop // 8)])[start - 8 * first : stop - 8 * first].float()

    def correction(self, weight: Weight, start: int, stop: int) -> Tensor:
        """Returns ones; see ``CoordinateMask.correction``."""
        return torch.ones(stop - start, dtype=torch.float32, device=weight.parameter.device)

    def nbytes(self) -> int:
        """Returns the bytes of the bits. Called when memory is reported."""
        return sum(packed.nbytes for packed in self.bits.values())


def packed(chosen: Tensor) -> Tensor:
    """Packs a bool vector, eight elements in a byte, the first in the lowest bit; uint8. Called when a mask is made."""
    padded = torch.nn.functional.pad(chosen.to(torch.uint8), (0, -chosen.numel() % 8)).view(-1, 8)
    shifts = torch.arange(8, dtype=torch.uint8, device=chosen.device)
    return (padded << shifts).sum(1, dtype=torch.uint8)


def _unpacked(bits: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits.unsqueeze(1) >> shifts) & 1).flatten()
