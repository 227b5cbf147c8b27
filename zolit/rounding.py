"""Arithmetic on weights is float32 or wider, whatever type the weights have, and is rounded once.

A step moves a weight by about lr·Δ·u. In bfloat16, which has 8 significant bits, that is mostly less than half a unit
in the last place, and rounding to nearest would drop it, every time. Stochastic rounding moves up or down with the
chance that makes the result right on average.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    def widened(self, piece: Tensor, key: int | None = None) -> Iterator[Tensor]:
        """Lends a piece of a weight in float32, and writes it back when done.

        Args:
            piece: Shape (m,), any floating type.
            key: Round stochastically, by the random numbers that it names; None rounds to nearest.

        Yields:
            The piece itself where it is float32 or wider, else a copy, valid until the next call.
        """
        if piece.dtype.itemsize >= 4:
            yield piece
            return
        # Whole periods, so that random bits are added at once; what is beyond the piece's end is of no account.
        periods = self._wide.take(-(-piece.numel() // _PERIOD) * _PERIOD, piece.device).view(-1, _PERIOD)
        wide = periods.view(-1)[: piece.numel()]
        wide.copy_(piece)
        yield wide
        if key is not None:
            bits = self._bits(wide.device, mix(key) % _PERIOD)
            if piece.numel() < _PERIOD:
                _dither(wide, bits[: piece.numel()], piece.dtype)
            else:
                _dither(periods, bits, piece.dtype)
        piece.copy_(wide)

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
