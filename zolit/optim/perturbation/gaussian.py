"""Standard normal directions, as in MeZO (arXiv 2305.17333, Algorithm 1)."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from zolit.optim.blocks import Weight
from zolit.optim.buffers import CPU_CHUNK, Scratch
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.randomness import Generators, fold_in, fold_in_each, key_of

_HALF_RANGE = 1 << 31
_LOWER = (CPU_CHUNK - 1).bit_length()
_LEAST_SQUARE = torch.tensor(2.0**-64, dtype=torch.float32)


class Gaussian(Perturbation):
    """Draws every number of a direction independently: u ~ N(0, I).

    On a GPU, torch's generator draws the numbers. On a CPU that generator would use one core and take 4 ns a number.
    There, a fixed table of random bits is hashed with the key of each piece. The Box-Muller transform converts pairs of
    hashed numbers to normal numbers. Both use vector arithmetic on all cores. The numbers lie within 6.6 standard
    deviations; one normal number in 30 billion does not.
    """

    def __init__(self) -> None:
        self._scratch = Scratch()
        self._bits = Scratch(torch.int32)
        self._generators = Generators()
        self._drawn: tuple[int, int, int, torch.device] | None = None

    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Draws normal numbers in float32; see ``Perturbation.draw``."""
        device = weight.parameter.device
        z = self._scratch.get(stop - start + (stop - start) % 2, device)  # Box-Muller makes numbers in pairs
        if self._drawn != (key, start, stop, device):
            self._drawn = None
            if device.type == "cpu":
                box_muller(hashed(fold_in(key, start), self._bits.get(z.numel(), device), z.view(torch.int32)), z)
            else:
                z.normal_(generator=self._generators.seeded(fold_in(key, start), device))
            self._drawn = (key, start, stop, device)
        return z[: stop - start], 1.0

    def scratch_bytes(self) -> int:
        """Returns the bytes of the buffers for draws; see ``Stage.scratch_bytes``."""
        return self._scratch.bytes() + self._bits.bytes()


def hashed(key: int, bits: Tensor, spare: Tensor) -> Tensor:
    """Fills ``bits`` with uniform random bits: hashes a fixed table of random bits with the key. Called for each draw.

    Multiplications and a shift alternate, as in the finalizer of MurmurHash3 (A. Appleby). One half of the key is
    combined with the table, and the other half is the first factor. Use keys from ``fold_in``: keys that differ in few
    bits give related numbers.

    Args:
        key: 64 bits.
        bits: The tensor to fill, int32, shape (m,).
        spare: Memory to overwrite, of the same type and shape.

    Returns:
        ``bits``.
    """
    torch.bitwise_xor(_table()[: bits.numel()], _signed(key), out=bits)
    bits.mul_(_signed(key >> 32 | 1))
    bits.add_(torch.bitwise_right_shift(bits, 16, out=spare)).mul_(_signed(0x846CA68B))
    return bits


def box_muller(bits: Tensor, z: Tensor) -> None:
    """Converts uniform bits to normal numbers (Box and Muller, 1958): z = √(-ln v²) (cos φ, sin φ).

    Called for each draw, after ``hashed``.

    Args:
        bits: int32, shape (2m,). They are overwritten.
        z: The tensor to fill, float32, shape (2m,).
    """
    for_radius, for_angle = bits.chunk(2)
    radius, angle = z.chunk(2)
    v = radius.copy_(for_radius)  # in units of 2^-31, positive or negative
    torch.addcmul(_LEAST_SQUARE, v, v, value=_HALF_RANGE**-2, out=radius).log_().neg_().sqrt_()
    angle.copy_(for_angle).mul_(math.pi / _HALF_RANGE)
    cosine = torch.cos(angle, out=for_radius.view(torch.float32))
    angle.sin_().mul_(radius)
    radius.mul_(cosine)


@cache
def _table() -> Tensor:
    """Returns a fixed table of random bits, int32, as long as the largest piece.

    The lower 19 bits of any two numbers differ. Two numbers that differed in upper bits alone would differ by the same
    amount after the multiplication by any key, and the two positions would be correlated in every draw.
    """
    bits = fold_in_each(np.arange(CPU_CHUNK), np.array(key_of("table of bits"), dtype=np.uint64))
    upper = bits >> np.uint64(64 - 32 + _LOWER) << np.uint64(_LOWER)
    return torch.from_numpy((upper | np.argsort(bits).astype(np.uint64)).astype(np.uint32).view(np.int32))


def _signed(number: int) -> int:
    """Returns the int32 that has the lower 32 bits of a number."""
    return (number + _HALF_RANGE) % (2 * _HALF_RANGE) - _HALF_RANGE
