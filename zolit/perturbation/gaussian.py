"""Standard normal directions: MeZO's (arXiv 2305.17333, Algorithm 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.hashing import mix
from zolit.perturbation.base import Perturbation
from zolit.scratch import Generators, Scratch

_HALF_RANGE = 1 << 31


class Gaussian(Perturbation):
    """u ~ N(0, I), every number drawn anew.

    On a GPU torch's generator draws. On a CPU it would draw on one core, 4 ns a number; there each number's place is
    hashed to 32 bits, and pairs of them become normal by Box and Muller's transform, in whole-vector arithmetic on all
    cores. Numbers lie within 5.9 standard deviations: one in 200 million would not.
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
    """Fills ``bits`` with a hash of the key and each element's place.

    Multiplications and shifts alternate as in the finalizer of MurmurHash3 (A. Appleby), with constants that C. Wellons
    found to flip every bit with nearly even chances; half of the key comes in before, and half in between.

    Args:
        key: 64 bits.
        bits: Where to, int32, shape (m,).
        spare: Overwritten; of the same type and shape.

    Returns:
        ``bits``.
    """

    def fold(shift: int) -> None:
        upper = torch.bitwise_right_shift(bits, shift, out=spare)  # brings copies of the sign along
        bits.bitwise_xor_(upper.bitwise_and_((1 << (32 - shift)) - 1))

    torch.arange(bits.numel(), out=bits)
    bits.mul_(_signed(0x9E3779B1)).add_(_signed(key))
    fold(16)
    bits.mul_(_signed(0x7FEB352D)).bitwise_xor_(_signed(key >> 32))
    fold(15)
    bits.mul_(_signed(0x846CA68B))
    fold(16)
    return bits


def box_muller(bits: Tensor, z: Tensor) -> None:
    """Makes normal numbers of uniform bits (Box and Muller, 1958): z = √(-2 ln v) (cos φ, sin φ).

    Args:
        bits: int32, shape (2m,), overwritten.
        z: Where to, float32, shape (2m,).
    """
    for_radius, for_angle = bits.chunk(2)
    radius, angle = z.chunk(2)
    radius.copy_(for_radius.bitwise_and_((1 << 24) - 1))
    radius.add_(0.5).mul_(2.0**-24).log_().mul_(-2.0).sqrt_()
    angle.copy_(for_angle).mul_(math.pi / _HALF_RANGE)
    cosine = torch.cos(angle, out=for_radius.view(torch.float32))
    angle.sin_().mul_(radius)
    radius.mul_(cosine)


def _signed(number: int) -> int:
    """Returns the lower 32 bits as the int32 that has them."""
    return (number + _HALF_RANGE) % (2 * _HALF_RANGE) - _HALF_RANGE
