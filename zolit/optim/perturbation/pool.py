"""Pools of normal numbers. On a CPU, drawing numbers takes longer than the arithmetic of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from zolit.optim.blocks import Weight
from zolit.optim.buffers import CPU_CHUNK
from zolit.optim.perturbation.gaussian import box_muller, hashed
from zolit.optim.randomness import Generators, fold_in

ALIGNMENT = 64
"""Windows of a pool begin at multiples of this number."""


class Pools:
    """Holds a pool for each device and type of weights. The pools are drawn again each step.

    Args:
        numel: Number of elements of a pool.
        wide: Whether to keep the numbers also in float32, for weights of 16 bits on a CPU. Conversion there is slow.
    """

    def __init__(self, numel: int, wide: bool = True) -> None:
        self._numel = numel
        self._wide = wide
        self._key = 0
        self._pools: dict[tuple[torch.device, torch.dtype], Pool] = {}

    def begin_step(self, key: int) -> None:
        """Marks the pools to be drawn from this key when they are next needed. Called once a step."""
        self._key = key

    def of(self, weight: Weight) -> Pool:
        """Returns the pool for the device and type of a weight, and draws it if that is due. Called for each draw."""
        dtype, device = weight.parameter.dtype, weight.parameter.device
        kind = (device, dtype if dtype.itemsize == 2 else torch.float32)
        pool = self._pools.get(kind)
        if pool is None:
            pool = self._pools[kind] = Pool(self._numel, *kind, self._wide and device.type == "cpu")
        if pool.key != self._key:
            pool.refill(self._key)
        return pool

    def bytes(self) -> int:
        """Returns the bytes of the numbers. Called when memory is reported."""
        return sum(pool.bytes() for pool in self._pools.values())


class Pool:
    """Normal numbers for the weights of one device and type, scaled to mean square 1.

    Args:
        numel: Number of elements, a multiple of 64.
        device: The device of the weights.
        dtype: The type of the weights.
        wide: Whether to keep the numbers also in float32, if ``dtype`` has 16 bits.

    Attributes:
        key: The key from which the numbers were drawn.
        narrow: The numbers in ``dtype`` if it has 16 bits, else in float32.
        wide: The same numbers in float32. If these are not kept, this is ``narrow`` itself.
        halves: The two halves of ``narrow``.
    """

    def __init__(self, numel: int, device: torch.device, dtype: torch.dtype, wide: bool = True) -> None:
        self.key = -1
        self.narrow = torch.empty(numel, dtype=dtype if dtype.itemsize == 2 else torch.float32, device=device)
        self.wide = self.narrow if self.narrow.dtype == torch.float32 or not wide else self.narrow.float()
        self.halves = self.narrow.chunk(2)
        self._generators = Generators()
        self._sums: Any = None  # numpy's float64, shape (numel / 64 + 1,)

    def refill(self, key: int) -> None:
        """Draws all numbers from a key. Called once a step."""
        self.key = key
        drawn = self.wide if self.wide.dtype == torch.float32 else torch.empty_like(self.narrow, dtype=torch.float32)
        if drawn.device.type == "cpu":
            for index, part in enumerate(torch.split(drawn, CPU_CHUNK)):
                bits = torch.empty(part.numel(), dtype=torch.int32)
                box_muller(hashed(fold_in(key, index), bits, part.view(torch.int32)), part)
        else:
            drawn.normal_(generator=self._generators.seeded(key, drawn.device))
        drawn.mul_(drawn.square().mean().rsqrt())
        if self.narrow is not drawn:
            drawn.copy_(self.narrow.copy_(drawn))
        self._sums = None

    def squared_norm(self, start: int, stop: int) -> float:
        """Returns the sum of squares of elements start to stop - 1; start is a multiple of 64. Called by the update."""
        if self._sums is None:
            squares = self.wide.float().view(-1, ALIGNMENT).square().sum(1).cpu().double()
            # On the CPU, because a GPU rounds running sums differently each time.
            self._sums = functional.pad(squares.cumsum(0), (1, 0)).numpy()
        whole = stop - (stop - start) % ALIGNMENT
        known = float(self._sums[whole // ALIGNMENT] - self._sums[start // ALIGNMENT])
        rest = self.wide[whole:stop]
        return known + float(rest.dot(rest)) if whole < stop else known

    def bytes(self) -> int:
        """Returns the bytes of the numbers. Called when memory is reported."""
        return self.wide.nbytes + (self.narrow.nbytes if self.narrow is not self.wide else 0)
