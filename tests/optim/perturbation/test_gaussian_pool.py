"""Directions that are windows of a pool of normal numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.draws import weight, whole
from zolit import CurvZO
from zolit.optim.blocks import Weight
from zolit.optim.buffers import CPU_CHUNK
from zolit.optim.perturbation.gaussian_pool import GaussianPool
from zolit.optim.randomness import Step, key_of


def pool_draw(law: GaussianPool, numel: int, key: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, float]:
    return law.draw(Weight("w", nn.Parameter(torch.zeros(numel, dtype=dtype)), 0), key, 0, numel, dtype)


def test_pool_is_scaled_and_drawn_again_each_step() -> None:
    law = GaussianPool()
    draws = []
    for step in (0, 1, 0):
        law.begin_step(Step(7, step))
        values, factor = pool_draw(law, CPU_CHUNK, 3)
        pool = next(iter(law._pools._pools.values())).wide
        assert pool.numel() == 2 * CPU_CHUNK
        assert float(pool.double().square().mean()) == pytest.approx(1.0, abs=1e-6)
        draws.append(values * factor)
    assert torch.equal(draws[0], draws[2])
    assert abs(float((draws[0] * draws[1]).mean())) < 5 / CPU_CHUNK**0.5


def test_pool_offsets_reach_both_ends_and_both_signs() -> None:
    law = GaussianPool()
    seen = {}
    for key in range(2000):
        values, factor = pool_draw(law, CPU_CHUNK, key)
        offset = values.storage_offset()
        assert offset % 64 == 0
        assert 0 <= offset <= CPU_CHUNK
        seen[offset] = factor
    assert min(seen) < CPU_CHUNK / 50
    assert max(seen) > CPU_CHUNK * 49 / 50
    assert abs(sum(seen.values())) < 5 * len(seen) ** 0.5


@pytest.mark.parametrize("fresh", [True, False])
def test_why_the_pool_is_drawn_again(fresh: bool) -> None:
    """The mean of ⟨u, g⟩u over 20,000 steps, for a short piece of a small pool, is g; a pool that stays is biased.

    With as many offsets as dimensions, E[uuᵀ] over one pool is a sample covariance that is far from the identity.
    """
    dimensions, steps = 512, 20_000
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(dimensions, generator=generator)
    mean, pool = torch.zeros(dimensions), torch.randn(2 * dimensions, generator=generator)
    for _ in range(steps):
        if fresh:
            pool = torch.randn(2 * dimensions, generator=generator)
        offset = int(torch.randint(dimensions + 1, (), generator=generator))
        u = pool[offset : offset + dimensions]
        mean += (u @ g) * u / steps
    error = float((mean - g).norm() / g.norm())
    noise = (dimensions / steps) ** 0.5
    assert (error < 1.3 * noise) == fresh


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pool_holds_the_same_numbers_in_both_types(dtype: torch.dtype) -> None:
    law = GaussianPool()
    weight = Weight("w", nn.Parameter(torch.zeros(1000, dtype=dtype)), 0)
    narrow, sign = law.draw(weight, 5, 0, 1000, dtype)
    wide, other = law.draw(weight, 5, 0, 1000)
    assert (narrow.dtype, wide.dtype) == (dtype, torch.float32)
    assert sign == other
    assert torch.equal(narrow.float(), wide)
    assert law.scratch_bytes() == 2 * CPU_CHUNK * (2 + 4)


@pytest.mark.parametrize("numel", [1, 63, 64, 1000, CPU_CHUNK])
def test_pool_knows_the_squared_norm(numel: int) -> None:
    law = GaussianPool()
    for key in range(5):
        values, factor = pool_draw(law, numel, key)
        norm = law.squared_norm(weight(numel), key, 0, numel)
        assert norm == pytest.approx(float((values.double() * factor).square().sum()), rel=1e-6)


def test_pool_is_not_written_by_steps() -> None:
    law = GaussianPool()
    model = nn.Linear(5, 3)
    optimizer = CurvZO(model, blocks="parameter", perturbation=law, lr=1e-3, momentum=0.9)
    for step in range(3):
        optimizer.step(lambda: model(torch.ones(2, 5)).square().mean(1))
        used = next(iter(law._pools._pools.values())).wide.clone()
        law.begin_step(Step(0, -1))
        pool_draw(law, 1, 0)
        law.begin_step(Step(0, step))
        pool_draw(law, 1, 0)
        assert torch.equal(next(iter(law._pools._pools.values())).wide, used)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_equal_those_of_the_pieces(dtype: torch.dtype) -> None:
    law, to = GaussianPool(), Weight("w", nn.Parameter(torch.zeros(3000, 500, dtype=dtype)), key_of("w"))
    law.begin_step(Step(0, 3))
    ids = torch.tensor([0, 2999, 1, 1023, 1024, 1047, 1048, 7])
    whole_rows = torch.cat([factor * z for z, factor in (law.draw(to, 5, *ends, dtype) for ends in law.chunks(to))])
    assert len(law.chunks(to)) > 2
    with Largest() as integers:
        rows = law.draw_rows(to, 5, ids)
    assert torch.equal(rows, whole_rows.view(3000, 500)[ids])
    assert integers.numel < 500  # no index of every number of the rows


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor of integers that a function returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.int64:
            self.numel = max(self.numel, result.numel())
        return result


def test_a_bound_law_has_a_pool_of_two_chunks() -> None:
    law, to = GaussianPool(), weight(132)
    law.bind(nn.Module(), [to], [])
    law.begin_step(Step(0, 1))
    assert law.chunk_size == 1 << 15
    assert whole(law, to, 1).shape == (132,)
    assert law.scratch_bytes() == 2 * (1 << 15) * 4
