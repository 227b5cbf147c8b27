"""Arithmetic on weights is float32 or wider, whatever type the weights have, and is rounded once.

A step moves a weight by about lr·Δ·u. In bfloat16, which has 8 significant bits, that is mostly less than half a unit
in the last place, and rounding to nearest would drop it, every time. Stochastic rounding moves up or down with the
chance that makes the result right on average.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from zolit.hashing import mix
from zolit.scratch import Generators, Scratch

_SEED = 0x726F756E64
_PERIOD = 1 << 16

Rounding = Literal["stochastic", "nearest"]
"""What becomes of an update to weights of 16 bits."""


class Widener:
    """Lends float32 views of weights of low precision."""

    def __init__(self) -> None:
        self._wide = Scratch()
        self._orders: dict[torch.device, Tensor] = {}

    @contextmanager
    def widened(self, pieces: list[Tensor], key: int | None = None) -> Iterator[Sequence[Tensor]]:
        """Lends pieces of weights in float32, and writes them back when done.

        Args:
            pieces: Shape (m,) each, of one floating type and on one device.
            key: Round stochastically, by the random numbers that it names; None rounds to nearest.

        Yields:
            The pieces themselves where they are float32 or wider, else copies, valid until the next call.
        """
        dtype, device = pieces[0].dtype, pieces[0].device
        if dtype.itemsize >= 4:
            yield pieces
            return
        lengths = [piece.numel() for piece in pieces]
        total = sum(lengths)
        # Whole periods, so that random bits are added at once; what is beyond the end is of no account.
        periods = self._take(-(-total // _PERIOD) * _PERIOD, device).view(-1, _PERIOD)
        wide = periods.view(-1)[:total]
        copies = torch.split(wide, lengths)
        torch._foreach_copy_(copies, pieces)
        yield copies
        if key is not None:
            bits = self._bits(device, mix(key) % _PERIOD)
            if total < _PERIOD:
                _dither(wide, bits[:total], dtype)
            else:
                _dither(periods, bits, dtype)
        torch._foreach_copy_(pieces, copies)

    def _take(self, numel: int, device: torch.device) -> Tensor:
        """Returns memory: kept for the next piece on a CPU; a GPU's allocator gives some at once, and takes it back."""
        if device.type == "cpu":
            return self._wide.take(numel, device)
        return torch.empty(numel, dtype=torch.float32, device=device)

    def _bits(self, device: torch.device, offset: int) -> Tensor:
        """Returns all numbers of 16 bits in a random order that begins at an offset, int32, shape (2^16,).

        They are added to every 2^16 weights anew. Drawing bits for each weight would take longer than all else in an
        update; an order of all of them, twice in a row, has every weight meet every number at some offset, so that
        also the chance of a rare move up is right.
        """
        if device not in self._orders:
            generator = Generators().seeded(_SEED, torch.device("cpu"))
            order = torch.randperm(_PERIOD, generator=generator, dtype=torch.int32)
            self._orders[device] = order.repeat(2).to(device)
        return self._orders[device][offset : offset + _PERIOD]

    def scratch_bytes(self) -> int:
        """Returns the bytes of the buffers."""
        return self._wide.bytes() + sum(order.nbytes for order in self._orders.values())


def _dither(wide: Tensor, bits: Tensor, dtype: torch.dtype) -> None:
    """Rounds float32 numbers onto the grid of a 16-bit type, up with the chance of the part that is cut off.

    Args:
        wide: Shape (..., m).
        bits: Random numbers of 16 bits, int32, shape (m,).
        dtype: bfloat16 or float16.
    """
    cut = 16 if dtype == torch.bfloat16 else 13
    subnormal = None
    if dtype == torch.float16:
        # Below 2^-14 the grid of float16 is uniform, 2^-24, and no longer that of its leading bits. In its units a
        # number is below 2^10, so that an offset of 14 bits, (k + 1/2) / 2^13, is added without being rounded.
        subnormal = torch.floor(wide * 2.0**24 + ((bits >> 3).float() + 0.5) * 2.0**-13) * 2.0**-24
        subnormal = torch.where(wide.abs() < 2.0**-14, subnormal, torch.nan)
    pattern = wide.view(torch.int32)
    pattern.add_(bits if cut == 16 else bits >> 3).bitwise_and_(-(1 << cut))
    if subnormal is not None:
        torch.where(subnormal.isnan(), wide, subnormal, out=wide)
