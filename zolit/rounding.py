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
from zolit.scratch import CHUNK, Generators, Scratch

_SEED = 0x726F756E64

Rounding = Literal["stochastic", "nearest"]
"""What becomes of an update to weights of 16 bits."""


class Widener:
    """Lends float32 views of weights of low precision."""

    def __init__(self) -> None:
        self._wide = Scratch(CHUNK)
        self._pools: dict[torch.device, Tensor] = {}

    @contextmanager
    def widened(self, piece: Tensor, key: int | None = None) -> Iterator[Tensor]:
        """Lends a piece of a weight in float32, and writes it back when done.

        Args:
            piece: Shape (m,), at most a chunk, any floating type.
            key: Round stochastically, by the random numbers that it names; None rounds to nearest.

        Yields:
            The piece itself where it is float32 or wider, else a copy, valid until the next call.
        """
        if piece.dtype.itemsize >= 4:
            yield piece
            return
        wide = self._wide.take(piece.numel(), piece.device)
        wide.copy_(piece)
        yield wide
        if key is not None:
            self._dither(wide, piece.dtype, key)
        piece.copy_(wide)

    def _dither(self, wide: Tensor, dtype: torch.dtype, key: int) -> None:
        """Rounds float32 numbers onto the grid of a 16-bit type, up with the chance of the part that is cut off."""
        pool = self._pool(wide.device)
        offset = mix(key) % (pool.numel() - wide.numel() + 1)
        bits = pool[offset : offset + wide.numel()]
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

    def _pool(self, device: torch.device) -> Tensor:
        """Returns numbers of 16 bits, in a random order that is the same everywhere: int32, two chunks of them.

        Drawing anew would take longer than all else in an update. Every 2^16 of them are all numbers of 16 bits, so
        that also the chance of a rare move up is right.
        """
        if device not in self._pools:
            generator = Generators().seeded(_SEED, torch.device("cpu"))
            orders = [torch.randperm(1 << 16, generator=generator, dtype=torch.int32) for _ in range(2 * CHUNK >> 16)]
            self._pools[device] = torch.cat(orders).to(device)
        return self._pools[device]

    def scratch_bytes(self) -> int:
        """Returns the bytes of the buffers."""
        return self._wide.bytes() + sum(pool.nbytes for pool in self._pools.values())
