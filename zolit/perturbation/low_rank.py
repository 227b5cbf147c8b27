"""Directions of low rank: of a matrix, products of two thin ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zolit.blocks import Weight
from zolit.errors import require
from zolit.hashing import mix, mix_each, name_key
from zolit.perturbation.base import Perturbation
from zolit.perturbation.factors import Factors
from zolit.perturbation.pool import ALIGNMENT, Pools
from zolit.scratch import CHUNK, Scratch

_PURPOSE = name_key("low rank")


class LowRank(Perturbation):
    """U = r^(-1/2) Σⱼ aⱼbⱼᵀ for a matrix of shape (n, d), and a itself for a vector; entries are N(0, 1).

    E[vec(U) vec(U)ᵀ] = I, so that estimates along U are unbiased as those along dense directions are, with r(n + d)
    numbers to draw for n·d weights (EGGROLL, arXiv 2511.16652, takes the same law for evolution strategies).

    Factors are windows of a pool that is drawn anew each step, at hashed offsets and with a hashed sign: a from its
    first half and b from its second, so that no a shares a number with a b.

    Args:
        rank: r. More than one makes U more like a dense direction: its entries' fourth moments fall.

    Raises:
        UserError: If it is not positive.
    """

    factored = True

    def __init__(self, rank: int = 1) -> None:
        require(rank >= 1, f"rank: a direction needs at least rank 1, not {rank}")
        self.rank = rank
        self._pools = Pools(2 * CHUNK, wide=False)
        self._scratch = Scratch()
        self._known: dict[tuple[Weight, tuple[int, ...]], Factors] = {}
        self._cuts: dict[tuple[Weight, tuple[int, ...]], Cut] = {}

    def bind(self, weights: Sequence[Weight]) -> None:
        """Makes pools that go with the chunks; see the base class."""
        super().bind(weights)
        self._pools = Pools(2 * self.chunk, wide=False)

    def begin(self, seed: int, step: int) -> None:
        """Has the pools drawn anew when they are next needed; see the base class."""
        self._pools.begin(mix(seed, step, _PURPOSE))
        self._known.clear()
        self._cuts.clear()

    def factors(self, weight: Weight, keys: Sequence[int]) -> Factors:
        """Cuts the factors of several directions of a weight out of the pool; see the base class."""
        name = (weight, tuple(keys))
        factors = self._known.get(name)
        if factors is None:
            if name not in self._cuts:
                self.expect({weight: keys})
            if weight.parameter.device.type == "cpu":
                self._known.clear()  # of several weights they would not stay in a cache; a GPU keeps a step's
            factors = self._known[name] = self._made(weight, keys, self._cuts[name])
        return factors

    def expect(self, keys: Mapping[Weight, Sequence[int]]) -> None:
        """Hashes where the factors of all weights begin in the pool, at once; see the base class."""
        alike: dict[tuple[torch.device, int], list[Weight]] = {}
        for weight in keys:
            theta = weight.parameter
            alike.setdefault((theta.device, self.rank if theta.ndim > 1 else 1), []).append(weight)
        for (device, rank), weights in alike.items():
            draws = parts_of([keys[weight] for weight in weights], rank)
            half, _ = self._pools.of(weights[0]).halves
            outputs = offsets(draws >> np.uint64(1) & np.uint64(0x7FFFFFFF), half)
            inputs = offsets(draws >> np.uint64(32), half)
            signs = torch.from_numpy((draws & np.uint64(1)).astype(np.float32)).view(len(weights), -1, rank)
            scales = signs.mul_(2.0).sub_(1.0).mul_(rank**-0.5).to(device, non_blocking=True)
            for weight, *cut in zip(weights, outputs, inputs, scales, strict=True):
                self._cuts[weight, tuple(keys[weight])] = Cut(*cut)

    def _made(self, weight: Weight, keys: Sequence[int], cut: Cut) -> Factors:
        theta, (half, _) = weight.parameter, self._pools.of(weight).halves
        outputs = windows(half, cut.outputs, theta.shape[0] if theta.ndim > 1 else theta.numel())
        inputs = self._inputs(weight, keys, cut) if theta.ndim > 1 else outputs.new_ones(len(keys), 1)
        shape = cut.scales.shape
        return Factors(outputs.view(*shape, -1), inputs.view(*shape, -1), cut.scales)

    def _inputs(self, weight: Weight, keys: Sequence[int], cut: Cut) -> Tensor:
        """Returns the input sides b of a matrix, shape (k·r, d)."""
        _, half = self._pools.of(weight).halves
        return windows(half, cut.inputs, weight.parameter[0].numel())

    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Multiplies a piece of a direction out, in float32; see the base class."""
        piece = self._scratch.take(stop - start, weight.parameter.device).zero_()
        self.factors(weight, [key]).add(piece, start, stop)
        return piece, 1.0

    def scratch_bytes(self) -> int:
        """Returns the bytes of the pools, of kept factors and of the buffer that pieces are multiplied out in."""
        kept = sum(factors.outputs.nbytes + factors.inputs.nbytes for factors in self._known.values())
        return self._scratch.bytes() + self._pools.bytes() + kept


class Cut(NamedTuple):
    """Where the windows of a weight's a and b begin, shape (k·r,) each, and the factors' scales, shape (k, r)."""

    outputs: Tensor
    inputs: Tensor
    scales: Tensor


def parts_of(keys: Sequence[Sequence[int]], rank: int, *purpose: int) -> NDArray[np.uint64]:
    """Mixes a draw for each part of each direction of several weights.

    Args:
        keys: What names each of k directions of each weight.
        rank: Parts of a direction.
        purpose: What is mixed in before the part.

    Returns:
        Shape (weights, k·rank).
    """
    draws = np.array(keys, dtype=np.uint64).reshape(len(keys), -1, 1)
    for part in purpose:
        draws = mix_each([part], draws)
    return mix_each(range(rank), draws).reshape(len(keys), -1)


def offsets(draws: NDArray[np.uint64], half: Tensor) -> Tensor:
    """Hashes where windows of half a pool begin: in its first half, so that it does not depend on their length.

    Returns:
        In units of ``ALIGNMENT``, of the draws' shape, int64, on the pool's device.
    """
    places = (draws % np.uint64(half.numel() // 2 // ALIGNMENT)).astype(np.int64)
    return torch.from_numpy(places).to(half.device, non_blocking=True)


def windows(half: Tensor, places: Tensor, length: int) -> Tensor:
    """Copies windows of half a pool, shape (draws, length).

    Raises:
        UserError: If they are longer than half of that.
    """
    most = half.numel() // 2
    require(length <= most, f"perturbation: a side of {length} is more than the {most} that low-rank directions allow")
    return half.as_strided((most // ALIGNMENT, length), (ALIGNMENT, 1)).index_select(0, places)
