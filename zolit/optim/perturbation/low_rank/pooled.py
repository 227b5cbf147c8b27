"""Low-rank directions whose factors are windows of a pool of normal numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.blocks import Block, Weight
from zolit.optim.buffers import CPU_CHUNK, Scratch
from zolit.optim.perturbation.factored import FactoredPerturbation, Factors
from zolit.optim.perturbation.pool import ALIGNMENT, Pools
from zolit.optim.randomness import Step, fold_in_each, key_of

_PURPOSE = key_of("low rank")


class PooledFactors(FactoredPerturbation):
    """Takes U = r^(-1/2) Σⱼ aⱼbⱼᵀ for a matrix of shape (n, d), and a for a vector, from a pool of normal numbers.

    The pool is drawn once a step. A factor is a window of the pool at a hashed offset, and each term has a hashed sign.
    a comes from the first half and b from the second half, so no a shares a number with a b. Subclasses replace one of
    the factors.

    Args:
        rank: r.

    Raises:
        UserError: If the rank is not positive.
    """

    def __init__(self, rank: int = 1) -> None:
        require(rank >= 1, f"rank: a direction needs at least rank 1, not {rank}")
        self.rank = rank
        self._pools = Pools(2 * CPU_CHUNK, wide=False)
        self._scratch = Scratch()
        self._known: dict[tuple[Weight, tuple[int, ...]], Factors] = {}
        self._cuts: dict[tuple[Weight, tuple[int, ...]], Cut] = {}

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Sets the chunk size, and makes pools of two chunks; see ``Stage.bind``."""
        super().bind(model, weights, blocks)
        self._pools = Pools(2 * self.chunk_size, wide=False)

    def begin_step(self, step: Step) -> None:
        """Marks the pools to be drawn for this step; see ``Perturbation.begin_step``."""
        self._pools.begin_step(step.draw_key(_PURPOSE))
        self._known.clear()
        self._cuts.clear()

    def factors(self, weight: Weight, keys: Sequence[int]) -> Factors | None:
        """Returns a and b of several directions of a weight; see ``FactoredPerturbation.factors``."""
        return self._factors(weight, keys)

    def _factors(self, weight: Weight, keys: Sequence[int]) -> Factors:
        name = (weight, tuple(keys))
        factors = self._known.get(name)
        if factors is None:
            if name not in self._cuts:
                self.prefetch({weight: keys})
            if weight.parameter.device.type == "cpu":
                self._known.clear()  # factors of several weights exceed the cache of a CPU; a GPU keeps all of a step
            factors = self._known[name] = self._make_factors(weight, keys, self._cuts[name])
        return factors

    def prefetch(self, keys: Mapping[Weight, Sequence[int]]) -> None:
        """Hashes the offsets and signs of the factors of all weights; see ``FactoredPerturbation.prefetch``."""
        groups: dict[tuple[torch.device, int], list[Weight]] = {}
        for weight in keys:
            theta = weight.parameter
            groups.setdefault((theta.device, self.rank if theta.ndim > 1 else 1), []).append(weight)
        for (device, rank), weights in groups.items():
            draws = draws_of([keys[weight] for weight in weights], rank)
            half, _ = self._pools.of(weights[0]).halves
            outputs = offsets(draws >> np.uint64(1) & np.uint64(0x7FFFFFFF), half)
            inputs = offsets(draws >> np.uint64(32), half)
            signs = torch.from_numpy((draws & np.uint64(1)).astype(np.float32)).view(len(weights), -1, rank)
            scales = signs.mul_(2.0).sub_(1.0).mul_(rank**-0.5).to(device, non_blocking=True)
            for weight, *cut in zip(weights, outputs, inputs, scales, strict=True):
                self._cuts[weight, tuple(keys[weight])] = Cut(*cut)

    def _make_factors(self, weight: Weight, keys: Sequence[int], cut: Cut) -> Factors:
        theta, (half, _) = weight.parameter, self._pools.of(weight).halves
        outputs = windows(half, cut.outputs, theta.shape[0] if theta.ndim > 1 else theta.numel())
        inputs = self._input_factors(weight, keys, cut) if theta.ndim > 1 else outputs.new_ones(len(keys), 1)
        shape = cut.scales.shape
        return Factors(outputs.view(*shape, -1), inputs.view(*shape, -1), cut.scales)

    def _input_factors(self, weight: Weight, keys: Sequence[int], cut: Cut) -> Tensor:
        """Returns the factors b of a matrix, shape (k·r, d)."""
        _, half = self._pools.of(weight).halves
        return windows(half, cut.inputs, weight.parameter[0].numel())

    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Multiplies the factors of one direction, in float32; see ``Perturbation.draw``."""
        piece = self._scratch.get(stop - start, weight.parameter.device).zero_()
        self._factors(weight, [key]).add_to(piece, start, stop)
        return piece, 1.0

    def scratch_bytes(self) -> int:
        """Returns the bytes of the pools, the kept factors and the buffer for pieces; see ``Stage.scratch_bytes``."""
        kept = sum(factors.outputs.nbytes + factors.inputs.nbytes for factors in self._known.values())
        return self._scratch.bytes() + self._pools.bytes() + kept


class Cut(NamedTuple):
    """Offsets of the windows of a and b of a weight, shape (k·r,) each, and scales of the terms, shape (k, r).

    Offsets are in units of ``ALIGNMENT``.
    """

    outputs: Tensor
    inputs: Tensor
    scales: Tensor


def draws_of(keys: Sequence[Sequence[int]], rank: int, *purpose: int) -> NDArray[np.uint64]:
    """Hashes a random 64-bit number for each of the r terms of each direction. Called once for several weights.

    Args:
        keys: The key of each of the k directions, for each weight.
        rank: r.
        purpose: Numbers to hash in before the index of the term.

    Returns:
        Shape (weights, k·r).
    """
    draws = np.array(keys, dtype=np.uint64).reshape(len(keys), -1, 1)
    for part in purpose:
        draws = fold_in_each([part], draws)
    return fold_in_each(range(rank), draws).reshape(len(keys), -1)


def offsets(draws: NDArray[np.uint64], half: Tensor) -> Tensor:
    """Reduces hashed numbers to offsets of windows in half a pool. Called once for several weights.

    A window of any length begins in the first half of the half pool.

    Returns:
        Offsets in units of ``ALIGNMENT``, of the shape of the draws, int64, on the device of the pool.
    """
    begins = (draws % np.uint64(half.numel() // 2 // ALIGNMENT)).astype(np.int64)
    return torch.from_numpy(begins).to(half.device, non_blocking=True)


def windows(half: Tensor, begins: Tensor, length: int) -> Tensor:
    """Copies windows of half a pool, shape (draws, length). Called when factors are made.

    Raises:
        UserError: If the length is more than half of the half pool.
    """
    most = half.numel() // 2
    require(length <= most, f"perturbation: a side of {length} is more than the {most} that low-rank directions allow")
    return half.as_strided((most // ALIGNMENT, length), (ALIGNMENT, 1)).index_select(0, begins)
