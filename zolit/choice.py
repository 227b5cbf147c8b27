"""What a selection hands to the other rooms: which blocks, or which of their parameters, a step perturbs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from zolit.blocks import Weight


class CoordinateMask(Protocol):
    """A sample of single parameters."""

    def indicator(self, weight: Weight, start: int, stop: int) -> Tensor:
        """Returns m, 0 or 1, over a piece of a weight, shape (stop - start,), float32, valid until the next call."""
        ...

    def correction(self, weight: Weight, start: int, stop: int) -> Tensor:
        """Returns what m is to be multiplied by in the update, same shape: 1/π, or 1."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """What one step perturbs.

    Attributes:
        chosen: Which blocks are perturbed, shape (n,), bool, on the CPU.
        probabilities: π, the chance that each block had of being chosen, shape (n,), float64.
        corrections: What a block's update is multiplied by, 1/π or 1, shape (n,), float64.
        measure_energies: Whether the selection wants ``Directions.energies``.
        mask: Parameters within the chosen blocks; None where whole blocks are perturbed.
    """

    chosen: Tensor
    probabilities: Tensor
    corrections: Tensor
    measure_energies: bool = False
    mask: CoordinateMask | None = None
