"""Tests of all laws of independent numbers: moments, independence, pieces and memory."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from tests.helpers.draws import LAWS, weight, whole
from zolit.optim.blocks import Weight
from zolit.optim.buffers import CPU_CHUNK
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.perturbation.rademacher import Rademacher
from zolit.optim.randomness import fold_in


@pytest.fixture(scope="module", params=LAWS, ids=lambda law: law.__name__)
def law(request: pytest.FixtureRequest) -> Perturbation:
    return request.param()


def test_pieces_partition_a_weight_larger_than_a_chunk(law: Perturbation) -> None:
    numel = 2 * CPU_CHUNK + 17
    ranges = list(law.chunks(weight(numel)))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == numel
    assert all(stop == start for (_, stop), (start, _) in pairwise(ranges))
    assert all(0 < stop - start <= CPU_CHUNK for start, stop in ranges)


def test_moments(law: Perturbation) -> None:
    """Half a million elements have mean 0 and variance 1; the fourth moment depends on the law."""
    count = 1 << 19
    z = whole(law, weight(count), key=fold_in(1, 2)).double()
    # The moments within one piece of a pool are as exact as those of a fresh sample.
    assert abs(float(z.mean())) < 5 / count**0.5
    assert float(z.square().mean()) == pytest.approx(1.0, abs=5 * (2 / count) ** 0.5)
    fourth = 1.0 if isinstance(law, Rademacher) else 3.0
    assert float((z**4).mean()) == pytest.approx(fourth, abs=5 * (96 / count) ** 0.5)


@pytest.mark.parametrize("numel", [1, 3, 16, 40])
def test_moments_of_short_weights_over_keys(law: Perturbation, numel: int) -> None:
    """Over many keys, each element has mean 0, and the covariance is I."""
    draws = torch.stack([whole(law, weight(numel), fold_in(5, step)) for step in range(4000)]).double()
    assert float(draws.mean(0).abs().max()) < 4.5 / 4000**0.5
    covariance = draws.T @ draws / len(draws)
    assert float((covariance - torch.eye(numel)).abs().max()) < 5.5 * (2 / 4000) ** 0.5


def test_the_key_determines_the_draw(law: Perturbation) -> None:
    first = whole(law, weight(1000), key=42)
    second = whole(law, weight(1000), key=43)
    assert torch.equal(first, whole(law, weight(1000), key=42))
    assert not torch.equal(first, second)
    assert torch.equal(first, whole(type(law)(), weight(1000), key=42))


def test_pieces_of_one_weight_are_independent(law: Perturbation) -> None:
    z = whole(law, weight(2 * CPU_CHUNK + 5000), key=9).double()
    first, second, rest = z[:CPU_CHUNK], z[CPU_CHUNK : 2 * CPU_CHUNK], z[2 * CPU_CHUNK :]
    assert abs(float((first * second).mean())) < 5 / CPU_CHUNK**0.5
    assert abs(float((first[:5000] * rest).mean())) < 5 / 5000**0.5


@pytest.mark.parametrize(
    "shape", [(1000, 576), (3, CPU_CHUNK), (2, CPU_CHUNK + 3), (70, 8000), (5, 3, 7), (CPU_CHUNK + 5,)]
)
def test_pieces_are_whole_rows(law: Perturbation, shape: tuple[int, ...]) -> None:
    matrix = Weight("w", nn.Parameter(torch.zeros(shape)), 0)
    ranges = list(law.chunks(matrix))
    row = matrix.parameter[0].numel()
    assert ranges[0][0] == 0
    assert ranges[-1][1] == matrix.parameter.numel()
    assert all(stop == start for (_, stop), (start, _) in pairwise(ranges))
    assert all(stop - start <= CPU_CHUNK for start, stop in ranges)
    if row <= CPU_CHUNK:
        assert all(start % row == 0 for start, _ in ranges)


def test_scratch_is_a_chunk_for_weights_of_any_size(law: Perturbation) -> None:
    for numel in (10, 2 * CPU_CHUNK + 1):
        whole(law, weight(numel), 1)
    assert 0 < law.scratch_bytes() <= 8 * CPU_CHUNK + 8
