"""Converts weights of 16 bits to float32 for an update, and rounds them once afterwards.

A step moves a weight by about lr·Δ·u. bfloat16 has 8 significant bits, so this is mostly less than half a unit in the
last place. Rounding to nearest would drop such a move in every step. Stochastic rounding rounds up or down with
probabilities that make the result correct on average.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from zolit.optim.blocks import Weight
from zolit.optim.buffers import Scratch
from zolit.optim.randomness import Generators, Step, fold_in, key_of

_PURPOSE = key_of("update")
_SEED = 0x726F756E64
_PERIOD = 1 << 16
Rounding = Literal["stochastic", "nearest"]
"""How to round the result of an update of weights of 16 bits."""


def rounding_key(rounding: Rounding, step: Step, weight: Weight, start: int) -> int | None:
    """Returns the key for rounding a piece that begins at ``start``; None rounds to nearest. Called for each group."""
    return fold_in(step.key(_PURPOSE), weight.key, start) if rounding == "stochastic" else None


class Upcaster:
    """Upcasts 16-bit weights to float32 for an update, and rounds them back, stochastically if a key is given."""

    def __init__(self) -> None:
        self._wide = Scratch()
        self._orders: dict[torch.device, Tensor] = {}

    @contextmanager
    def upcast(self, pieces: list[Tensor], key: int | None = None) -> Iterator[Sequence[Tensor]]:
        """Provides pieces of weights in float32, and writes them back at the end. Used for each group of pieces.

        Args:
            pieces: Shape (m,) each, of one floating type and on one device.
            key: Key of the random bits for stochastic rounding; None rounds to nearest.

        Yields:
            The pieces themselves if they are float32 or wider, else copies, valid until the next call.
        """
        dtype, device = pieces[0].dtype, pieces[0].device
        if dtype.itemsize >= 4:
            yield pieces
            return
        lengths = [piece.numel() for piece in pieces]
        total = sum(lengths)
        # Memory of whole periods, so that one call adds the random bits. Elements after the end are ignored.
        periods = self._memory(-(-total // _PERIOD) * _PERIOD, device).view(-1, _PERIOD)
        wide = periods.view(-1)[:total]
        copies = torch.split(wide, lengths)
        torch._foreach_copy_(copies, pieces)
        yield copies
        if key is not None:
            bits = self._bits(device, fold_in(key) % _PERIOD)
            if total < _PERIOD:
                _round_stochastically(wide, bits[:total], dtype)
            else:
                _round_stochastically(periods, bits, dtype)
        torch._foreach_copy_(pieces, copies)

    def _memory(self, numel: int, device: torch.device) -> Tensor:
        """Returns memory. On a CPU a buffer is kept for the next piece; on a GPU allocation is fast."""
        if device.type == "cpu":
            return self._wide.get(numel, device)
        return torch.empty(numel, dtype=torch.float32, device=device)

    def _bits(self, device: torch.device, offset: int) -> Tensor:
        """Returns all numbers of 16 bits in a random order that begins at an offset, int32, shape (2^16,).

        The same order is added to every 2^16 weights. To draw bits for each weight would take longer than the rest of
        an update. The order contains every number once, and is stored twice in a row. Over all offsets each weight
        therefore meets every number, so the probability of a rare move up is correct too.
        """
        if device not in self._orders:
            generator = Generators().seeded(_SEED, torch.device("cpu"))
            order = torch.randperm(_PERIOD, generator=generator, dtype=torch.int32)
            self._orders[device] = order.repeat(2).to(device)
        return self._orders[device][offset : offset + _PERIOD]

    def scratch_bytes(self) -> int:
        """Returns the bytes of the buffers; see ``Stage.scratch_bytes``."""
        return self._wide.bytes() + sum(order.nbytes for order in self._orders.values())


def _round_stochastically(wide: Tensor, bits: Tensor, dtype: torch.dtype) -> None:
    """Rounds float32 numbers to the grid of a 16-bit type, up with a probability equal to the cut-off part.

    Args:
        wide: Shape (..., m).
        bits: Random numbers of 16 bits, int32, shape (m,).
        dtype: bfloat16 or float16.
    """
    cut = 16 if dtype == torch.bfloat16 else 13
    subnormal = None
    if dtype == torch.float16:
        # Below 2^-14 the grid of float16 has a uniform spacing of 2^-24, so cutting bits does not round to it. In units
        # of 2^-24 such a number is below 2^10, so an offset of 14 bits, (k + 1/2) / 2^13, is added without rounding.
        subnormal = torch.floor(wide * 2.0**24 + ((bits >> 3).float() + 0.5) * 2.0**-13) * 2.0**-24
        subnormal = torch.where(wide.abs() < 2.0**-14, subnormal, torch.nan)
    pattern = wide.view(torch.int32)
    pattern.add_(bits if cut == 16 else bits >> 3).bitwise_and_(-(1 << cut))
    if subnormal is not None:
        torch.where(subnormal.isnan(), wide, subnormal, out=wide)
