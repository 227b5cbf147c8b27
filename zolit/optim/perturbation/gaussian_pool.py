"""Gaussian directions that are windows of a pool of normal numbers. The pool is drawn once a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.blocks import Block, Weight
from zolit.optim.buffers import CPU_CHUNK
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.pool import ALIGNMENT, Pool, Pools
from zolit.optim.randomness import Step, fold_in, key_of

_PURPOSE = key_of("pool")


class GaussianPool(Perturbation):
    """Takes each piece of u from a pool of N(0, 1) numbers that is drawn again each step.

    The offset and the sign of a piece are hashed from its key. The pool is drawn again each step, so a piece is as
    normal as numbers that are drawn for it only, and E[uuᵀ] = I holds exactly. It would not hold for a pool that stays,
    because such a pool contains few directions.

    Two pieces of one step may contain the same numbers at different positions. Their random signs make them
    uncorrelated. On a CPU, with two chunks, a step draws at most 2^20 numbers for a model of any size.

    Weights of 16 bits get the numbers of the pool rounded to their type, in probes and updates alike.

    Args:
        chunks: Size of the pool in chunks, at least 2. A chunk has up to 2^19 numbers on a CPU, else up to 2^23.

    Raises:
        UserError: If the pool has fewer than 2 chunks.
    """

    draws_persist = True

    def __init__(self, chunks: int = 2) -> None:
        require(chunks >= 2, f"chunks: a pool needs at least 2, not {chunks}")
        self._chunks = chunks
        self._pools = Pools(chunks * CPU_CHUNK)
        self._cuts: dict[tuple[int, int, int], _Cut] = {}

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Sets the chunk size, and the size of the pools; see ``Stage.bind``."""
        super().bind(model, weights, blocks)
        self._pools = Pools(self._chunks * self.chunk_size)

    def begin_step(self, step: Step) -> None:
        """Marks the pools to be drawn for this step; see ``Perturbation.begin_step``."""
        self._pools.begin_step(step.draw_key(_PURPOSE))
        self._cuts.clear()

    def _cut(self, weight: Weight, key: int, start: int, stop: int) -> _Cut:
        """Returns a piece, and keeps it for the other probes and the update of the step."""
        cut = self._cuts.get((key, start, stop))
        if cut is None:
            pool = self._pools.of(weight)
            draw, numel = fold_in(key, start), stop - start
            offset = (draw >> 1) % ((pool.wide.numel() - numel) // ALIGNMENT + 1) * ALIGNMENT
            narrow = pool.narrow[offset : offset + numel]
            wide = narrow if pool.wide is pool.narrow else pool.wide[offset : offset + numel]
            cut = self._cuts[key, start, stop] = _Cut(wide, narrow, 1.0 if draw & 1 else -1.0, pool, offset)
        return cut

    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Returns a window of the pool, on a CPU without a copy; see ``Perturbation.draw``."""
        cut = self._cut(weight, key, start, stop)
        return (cut.narrow if dtype.itemsize == 2 else cut.wide.float()), cut.sign

    def draw_rows(self, weight: Weight, key: int, ids: Tensor) -> Tensor | None:
        """Copies rows of the pool in a few calls, without an index of each number; see ``Perturbation.draw_rows``."""
        width, chunks = weight.parameter.shape[1], self.chunks(weight)
        cuts = [self._cut(weight, key, start, stop) for start, stop in chunks]
        # Offsets are even, so the sign fits beside them, and one message to the device has both.
        packed = torch.tensor([cut.offset + (cut.sign > 0.0) for cut in cuts], pin_memory=ids.is_cuda)
        pool, length = cuts[0].pool.narrow, chunks[0][1] // width
        piece = ids // length
        own = packed.to(ids.device, non_blocking=True)[piece]
        first = (own & -2) + (ids - piece * length) * width
        rows = pool.as_strided((pool.numel() - width + 1, width), (1, 1)).index_select(0, first)
        return rows.mul_(((own & 1) * 2 - 1).to(pool.dtype).unsqueeze(1))

    def squared_norm(self, weight: Weight, key: int, start: int, stop: int) -> float | None:
        """Looks up ‖f·z‖² in a table of sums; see ``Perturbation.squared_norm``.

        On a GPU the host waits for the table once a step. The table has one sum for each 64 numbers. If the length of a
        piece is not a multiple of 64, its last numbers would need one more wait; the result is then None.
        """
        if weight.parameter.device.type != "cpu" and (stop - start) % ALIGNMENT:
            return None
        cut = self._cut(weight, key, start, stop)
        return cut.pool.squared_norm(cut.offset, cut.offset + stop - start)

    def scratch_bytes(self) -> int:
        """Returns the bytes of the pools; see ``Stage.scratch_bytes``."""
        return self._pools.bytes()


class _Cut(NamedTuple):
    """A piece: its numbers in float32 and in the type of the weight, its sign, its pool, and its offset in the pool."""

    wide: Tensor
    narrow: Tensor
    sign: float
    pool: Pool
    offset: int
