"""Normal numbers that were drawn once: on a CPU the generator, not the arithmetic, is what a step waits for."""

from __future__ import annotations

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.errors import require
from zolit.hashing import mix
from zolit.perturbation.base import Perturbation
from zolit.scratch import CHUNK, Generators

_SEED = 0x7A6F6C6974


class GaussianPool(Perturbation):
    """u is cut from a fixed pool of N(0, 1) numbers, at an offset and with a sign that its key hashes to.

    The pool's mean and scale are adjusted so that, over all offsets, an element has mean 0 and variance 1. Elements
    of one piece stay independent normals as far as the pool is; two pieces are the same only if their offsets meet, a
    chance of about 1 in 2^20 for pieces of full length, and overlap shifted otherwise.

    Args:
        size: Numbers in the pool; at least two chunks of 2^20. Two million take 8 MB, which stay in a cache.

    Raises:
        UserError: If the size is too small.
    """

    def __init__(self, size: int = 2 * CHUNK) -> None:
        require(size >= 2 * CHUNK, f"size: a pool needs at least {2 * CHUNK} numbers, not {size}")
        self._size = size
        self._pools: dict[torch.device, Tensor] = {}

    def _pool(self, device: torch.device) -> Tensor:
        if device not in self._pools:
            pool = torch.empty(self._size, dtype=torch.float32)
            pool.normal_(generator=Generators().seeded(_SEED, pool.device))
            pool.sub_(pool.mean()).div_(pool.square().mean().sqrt())
            self._pools[device] = pool.to(device)
        return self._pools[device]

    def draw(self, weight: Weight, key: int, start: int, stop: int) -> tuple[Tensor, float]:
        """Cuts a piece out of the pool, without a copy; see the base class."""
        draw = mix(key, start)
        offset = (draw >> 1) % (self._size - (stop - start) + 1)
        sign = 1.0 if draw & 1 else -1.0
        return self._pool(weight.parameter.device)[offset : offset + stop - start], sign

    def scratch_bytes(self) -> int:
        """Returns the bytes of the pools."""
        return sum(pool.nbytes for pool in self._pools.values())
