"""Normal numbers cut from a pool: on a CPU the generator, not the arithmetic, is what a step waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zolit.blocks import Weight
from zolit.errors import require
from zolit.hashing import mix, name_key
from zolit.perturbation.base import Perturbation
from zolit.perturbation.gaussian import box_muller, hashed
from zolit.scratch import CHUNK, Generators

_PURPOSE = name_key("pool")
ALIGNMENT = 64
"""Windows of a pool begin at multiples of this."""


class GaussianPool(Perturbation):
    """u is cut, piece by piece, from a pool of N(0, 1) numbers that is drawn anew each step.

    A piece has its own offset and its own sign, hashed from what it is for. Since the pool is drawn anew, a piece is
    as normal as numbers drawn for it alone: E[uuᵀ] = I holds exactly, and not for the few directions of a pool that
    stays. Two pieces of one step may hold the same numbers, shifted; their signs make them uncorrelated. On a CPU a
    pool takes at most 2^20 draws a step however large the model is.

    Weights of 16 bits get the pool's numbers rounded to their type, in probes and updates alike.

    Args:
        chunks: Size of the pool in chunks (on a CPU up to 2^19 numbers, elsewhere up to 2^23), at least 2.

    Raises:
        UserError: If that is too small.
    """

    lasting = True

    def __init__(self, chunks: int = 2) -> None:
        require(chunks >= 2, f"chunks: a pool needs at least 2, not {chunks}")
        self._chunks = chunks
        self._pools = Pools(chunks * CHUNK)
        self._cuts: dict[tuple[int, int, int], _Cut] = {}

    def bind(self, weights: Sequence[Weight]) -> None:
        """Makes pools that go with the chunks; see the base class."""
        super().bind(weights)
        self._pools = Pools(self._chunks * self.chunk)

    def begin(self, seed: int, step: int) -> None:
        """Has the pools drawn anew when they are next needed; see the base class."""
        self._pools.begin(mix(seed, step, _PURPOSE))
        self._cuts.clear()

    def _cut(self, weight: Weight, key: int, start: int, stop: int) -> _Cut:
        """Returns a piece; probes and the update of a step come back for it."""
        cut = self._cuts.get((key, start, stop))
        if cut is None:
            pool = self._pools.of(weight)
            draw, numel = mix(key, start), stop - start
            offset = (draw >> 1) % ((pool.wide.numel() - numel) // ALIGNMENT + 1) * ALIGNMENT
            narrow = pool.narrow[offset : offset + numel]
            wide = narrow if pool.wide is pool.narrow else pool.wide[offset : offset + numel]
            cut = self._cuts[key, start, stop] = _Cut(wide, narrow, 1.0 if draw & 1 else -1.0, pool, offset)
        return cut

    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Cuts a piece out of the pool, on a CPU without a copy; see the base class."""
        cut = self._cut(weight, key, start, stop)
        return (cut.narrow if dtype.itemsize == 2 else cut.wide.float()), cut.sign

    def rows(self, weight: Weight, key: int, ids: Tensor) -> Tensor | None:
        """Gathers rows out of the pool, by few calls; see the base class."""
        width, ranges = weight.parameter.shape[1], self.ranges(weight)
        cuts = [self._cut(weight, key, start, stop) for start, stop in ranges]
        offsets = torch.tensor([cut.offset for cut in cuts]).to(ids.device, non_blocking=True)
        pool = cuts[0].pool.narrow
        signs = torch.tensor([cut.sign for cut in cuts], dtype=pool.dtype).to(ids.device, non_blocking=True)
        length = ranges[0][1] // width
        piece = ids // length
        first = offsets[piece] + (ids - piece * length) * width
        return pool[first.unsqueeze(1) + torch.arange(width, device=ids.device)] * signs[piece].unsqueeze(1)

    def energy(self, weight: Weight, key: int, start: int, stop: int) -> float | None:
        """Looks ‖f·z‖² up in a table of sums, for which a GPU is waited for once a step; see the base class.

        On a GPU the last numbers of a piece whose length is no multiple of 64 would each be waited for: None.
        """
        if weight.parameter.device.type != "cpu" and (stop - start) % ALIGNMENT:
            return None
        cut = self._cut(weight, key, start, stop)
        return cut.pool.energy(cut.offset, cut.offset + stop - start)

    def scratch_bytes(self) -> int:
        """Returns the bytes of the pools."""
        return self._pools.bytes()


class _Cut(NamedTuple):
    """A piece: its numbers in float32 and as the weight would have them, its sign, and where they come from."""

    wide: Tensor
    narrow: Tensor
    sign: float
    pool: Pool
    offset: int


class Pools:
    """A pool for each device and type of weights, drawn anew each step.

    Args:
        numel: How many numbers a pool has.
        wide: Whether a CPU keeps the numbers in float32 too where weights have 16 bits: it would convert them slowly.
    """

    def __init__(self, numel: int, wide: bool = True) -> None:
        self._numel = numel
        self._wide = wide
        self._key = 0
        self._pools: dict[tuple[torch.device, torch.dtype], Pool] = {}

    def begin(self, key: int) -> None:
        """Has pools drawn anew, for this key, when they are next needed."""
        self._key = key

    def of(self, weight: Weight) -> Pool:
        """Returns the pool of a weight's device and type."""
        dtype, device = weight.parameter.dtype, weight.parameter.device
        kind = (device, dtype if dtype.itemsize == 2 else torch.float32)
        pool = self._pools.get(kind)
        if pool is None:
            pool = self._pools[kind] = Pool(self._numel, *kind, self._wide and device.type == "cpu")
        if pool.key != self._key:
            pool.refill(self._key)
        return pool

    def bytes(self) -> int:
        """Returns the bytes held."""
        return sum(pool.bytes() for pool in self._pools.values())


class Pool:
    """Numbers for the weights of one device and type, scaled to mean square 1.

    Args:
        numel: How many; a multiple of 64.
        device: Where.
        dtype: What the weights' type is.
        wide: Whether the numbers are kept in float32 too where that has 16 bits.

    Attributes:
        key: What they were drawn for.
        narrow: The numbers in the type's 16 bits, or else in float32.
        wide: The same numbers in float32; where these are not kept, ``narrow`` itself.
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
        """Draws all numbers anew."""
        self.key = key
        drawn = self.wide if self.wide.dtype == torch.float32 else torch.empty_like(self.narrow, dtype=torch.float32)
        if drawn.device.type == "cpu":
            for index, part in enumerate(torch.split(drawn, CHUNK)):
                bits = torch.empty(part.numel(), dtype=torch.int32)
                box_muller(hashed(mix(key, index), bits, part.view(torch.int32)), part)
        else:
            drawn.normal_(generator=self._generators.seeded(key, drawn.device))
        drawn.mul_(drawn.square().mean().rsqrt())
        if self.narrow is not drawn:
            drawn.copy_(self.narrow.copy_(drawn))
        self._sums = None

    def energy(self, start: int, stop: int) -> float:
        """Returns the sum of squares from a multiple of 64 on."""
        if self._sums is None:
            squares = self.wide.float().view(-1, ALIGNMENT).square().sum(1).cpu().double()
            # On a CPU, as a GPU's running sums are rounded another way each time.
            self._sums = functional.pad(squares.cumsum(0), (1, 0)).numpy()
        whole = stop - (stop - start) % ALIGNMENT
        energy = float(self._sums[whole // ALIGNMENT] - self._sums[start // ALIGNMENT])
        rest = self.wide[whole:stop]
        return energy + float(rest.dot(rest)) if whole < stop else energy

    def bytes(self) -> int:
        """Returns the bytes held."""
        return self.wide.nbytes + (self.narrow.nbytes if self.narrow is not self.wide else 0)
