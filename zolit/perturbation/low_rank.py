"""Directions of low rank: of a matrix, products of two thin ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.errors import require
from zolit.hashing import mix, name_key
from zolit.perturbation.base import Perturbation
from zolit.perturbation.factors import Factors
from zolit.perturbation.pool import ALIGNMENT, Pool
from zolit.scratch import Scratch, chunk

_PURPOSE = name_key("low rank")


class LowRank(Perturbation):
    """U = r^(-1/2) Σⱼ aⱼbⱼᵀ for a matrix of shape (n, d), and a itself for a vector; entries are N(0, 1).

    E[vec(U) vec(U)ᵀ] = I, so that estimates along U are unbiased as those along dense directions are, with 2r/(n·d)
    of the numbers to draw (EGGROLL, arXiv 2511.16652, takes the same law for evolution strategies).

    Factors are windows of a pool that is drawn anew each step, at hashed offsets and with a hashed sign: a from its
    first half and b from its second, so that no a shares a number with a b.

    Args:
        rank: r. More than one makes U more like a dense direction: its entries' fourth moments fall.

    Raises:
        UserError: If it is not positive.
    """

    def __init__(self, rank: int = 1) -> None:
        require(rank >= 1, f"rank: a direction needs at least rank 1, not {rank}")
        self.rank = rank
        self._key = 0
        self._pools: dict[tuple[torch.device, torch.dtype], Pool] = {}
        self._scratch = Scratch()
        self._last: tuple[Weight, tuple[int, ...]] | None = None

    def begin(self, key: int) -> None:
        """Has the pools drawn anew when they are next needed; see the base class."""
        self._key = mix(key, _PURPOSE)
        self._last = None

    def factors(self, weight: Weight, keys: Sequence[int]) -> Factors:
        """Cuts the factors of several directions of a weight out of the pool; see the base class."""
        name = (weight, tuple(keys))
        if self._last != name:
            self._last, self._factors = name, self._cut(weight, keys)
        return self._factors

    def _cut(self, weight: Weight, keys: Sequence[int]) -> Factors:
        theta = weight.parameter
        rows = theta.shape[0] if theta.ndim > 1 else theta.numel()
        width = theta.numel() // rows
        rank = self.rank if width > 1 else 1
        pool = self._pool(weight)
        half = pool.narrow.numel() // 2
        draws = [[mix(key, part) for part in range(rank)] for key in keys]
        signs = torch.tensor([[1.0 if draw & 1 else -1.0 for draw in row] for row in draws])
        outputs = windows(pool.narrow[:half], [draw >> 1 & 0x7FFFFFFF for row in draws for draw in row], rows)
        if width > 1:
            inputs = windows(pool.narrow[half:], [draw >> 32 for row in draws for draw in row], width)
        else:
            inputs = outputs.new_ones(len(keys), 1)
        return Factors(
            outputs.view(len(keys), rank, rows),
            inputs.view(len(keys), rank, width),
            signs.mul_(rank**-0.5).to(theta.device, non_blocking=True),
        )

    def _pool(self, weight: Weight) -> Pool:
        device, dtype = weight.parameter.device, weight.parameter.dtype
        kind = (device, dtype if dtype.itemsize == 2 else torch.float32)
        pool = self._pools.get(kind)
        if pool is None:
            pool = self._pools[kind] = Pool(2 * chunk(device), *kind)
        if pool.key != self._key:
            pool.refill(self._key)
        return pool

    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Multiplies a piece of a direction out, in float32; see the base class."""
        piece = self._scratch.take(stop - start, weight.parameter.device).zero_()
        self.factors(weight, [key]).add(piece, start, stop, [1.0])
        return piece, 1.0

    def scratch_bytes(self) -> int:
        """Returns the bytes of the pools and of the buffer that pieces are multiplied out in."""
        return self._scratch.bytes() + sum(pool.bytes() for pool in self._pools.values())


def windows(pool: Tensor, draws: Sequence[int], length: int) -> Tensor:
    """Copies windows of a pool, shape (draws, length); where they begin, in its first half, does not depend on length.

    Raises:
        UserError: If they are longer than the other half.
    """
    half = pool.numel() // 2
    require(length <= half, f"perturbation: a side of {length} is more than the {half} that low-rank directions allow")
    offsets = torch.tensor([draw % (half // ALIGNMENT) for draw in draws])
    view = pool.as_strided((half // ALIGNMENT, length), (ALIGNMENT, 1), pool.storage_offset())
    return view.index_select(0, offsets.to(pool.device, non_blocking=True))
