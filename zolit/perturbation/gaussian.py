"""Standard normal directions: MeZO's (arXiv 2305.17333, Algorithm 1)."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.hashing import mix
from zolit.perturbation.base import Perturbation
from zolit.scratch import CHUNK, Generators, Scratch

_HALF_RANGE = 1 << 31
_LEAST_SQUARE = torch.tensor(2.0**-64, dtype=torch.float32)


class Gaussian(Perturbation):
    """u ~ N(0, I), every number drawn anew.

    On a GPU torch's generator draws. On a CPU it would draw on one core, 4 ns a number; there a table of random bits is
    hashed anew for each piece, and pairs of them become normal by Box and Muller's transform, in whole-vector
    arithmetic on all cores. Numbers lie within 6.6 standard deviations: one in 30 billion would not.
    """

    def __init__(self) -> None:
        self._scratch = Scratch()
        self._bits = Scratch(torch.int32)
        self._generators = Generators()
        self._drawn: tuple[int, int, int, torch.device] | None = None

    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Draws normal numbers in float32; see the base class."""
        device = weight.parameter.device
        z = self._scratch.take(stop - start + (stop - start) % 2, device)  # an even number of them
        if self._drawn != (key, start, stop, device):
            self._drawn = None
            if device.type == "cpu":
                box_muller(hashed(mix(key, start), self._bits.take(z.numel(), device), z.view(torch.int32)), z)
            else:
                z.normal_(generator=self._generators.seeded(mix(key, start), device))
            self._drawn = (key, start, stop, device)
        return z[: stop - start], 1.0

    def scratch_bytes(self) -> int:
        """Returns the bytes of the buffers drawn into."""
        return self._scratch.bytes() + self._bits.bytes()


def hashed(key: int, bits: Tensor, spare: Tensor) -> Tensor:
    """Fills ``bits`` with uniform numbers: a table of random ones, hashed with the key.

    Multiplications and a shift alternate as in the finalizer of MurmurHash3 (A. Appleby); half of the key comes in
    before, and half as the first factor. Keys must have been mixed: those that differ in few bits give related numbers.

    Args:
        key: 64 bits.
        bits: Where to, int32, shape (m,).
        spare: Overwritten; of the same type and shape.

    Returns:
        ``bits``.
    """
    torch.bitwise_xor(_table()[: bits.numel()], _signed(key), out=bits)
    bits.mul_(_signed(key >> 32 | 1))
    bits.add_(torch.bitwise_right_shift(bits, 16, out=spare)).mul_(_signed(0x846CA68B))
    return bits


def box_muller(bits: Tensor, z: Tensor) -> None:
    """Makes normal numbers of uniform bits (Box and Muller, 1958): z = √(-ln v²) (cos φ, sin φ).

    Args:
        bits: int32, shape (2m,), overwritten.
        z: Where to, float32, shape (2m,).
    """
    for_radius, for_angle = bits.chunk(2)
    radius, angle = z.chunk(2)
    v = radius.copy_(for_radius)  # in units of 2^-31, and of either sign
    torch.addcmul(_LEAST_SQUARE, v, v, value=_HALF_RANGE**-2, out=radius).log_().neg_().sqrt_()
    angle.copy_(for_angle).mul_(math.pi / _HALF_RANGE)
    cosine = torch.cos(angle, out=for_radius.view(torch.float32))
    angle.sin_().mul_(radius)
    radius.mul_(cosine)


@cache
def _table() -> Tensor:
    """Returns random bits, int32, as many as a piece may have."""
    generator = torch.Generator().manual_seed(0x62697473)
    return torch.randint(-_HALF_RANGE, _HALF_RANGE, (CHUNK,), dtype=torch.int32, generator=generator)


def _signed(number: int) -> int:
    """Returns the lower 32 bits as the int32 that has them."""
    return (number + _HALF_RANGE) % (2 * _HALF_RANGE) - _HALF_RANGE
