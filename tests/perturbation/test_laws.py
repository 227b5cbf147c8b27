from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from zolit.blocks import Weight, partition, trainable_weights
from zolit.choice import Choice
from zolit.directions import Directions
from zolit.hashing import mix, name_key
from zolit.perturbation import Gaussian, GaussianPool, Perturbation, Rademacher
from zolit.scratch import CHUNK, chunk

LAWS = [Gaussian, Rademacher, GaussianPool]


@pytest.fixture(scope="module", params=LAWS, ids=lambda law: law.__name__)
def law(request: pytest.FixtureRequest) -> Perturbation:
    return request.param()


def weight(numel: int, name: str = "w") -> Weight:
    return Weight(name, nn.Parameter(torch.zeros(numel)), name_key(name))


def whole(law: Perturbation, to: Weight, key: int) -> Tensor:
    """All pieces of a direction; drawn one by one, as nothing may rely on two being valid at once."""
    pieces = []
    for start, stop in law.ranges(to):
        values, factor = law.draw(to, key, start, stop)
        assert values.shape == (stop - start,)
        assert values.dtype == torch.float32
        pieces.append(values * factor)
    return torch.cat(pieces)


def test_ranges_partition_a_weight_larger_than_a_chunk(law: Perturbation) -> None:
    numel = 2 * CHUNK + 17
    ranges = list(law.ranges(weight(numel)))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == numel
    assert all(stop == start for (_, stop), (start, _) in pairwise(ranges))
    assert all(0 < stop - start <= CHUNK for start, stop in ranges)


def test_moments(law: Perturbation) -> None:
    """Mean 0 and variance 1 of half a million elements; the fourth moment is the law's own."""
    count = 1 << 19
    z = whole(law, weight(count), key=mix(1, 2)).double()
    # Within one piece of a pool, moments are those of its part of the pool: as exact as a fresh sample's.
    assert abs(float(z.mean())) < 5 / count**0.5
    assert float(z.square().mean()) == pytest.approx(1.0, abs=5 * (2 / count) ** 0.5)
    fourth = 1.0 if isinstance(law, Rademacher) else 3.0
    assert float((z**4).mean()) == pytest.approx(fourth, abs=5 * (96 / count) ** 0.5)


@pytest.mark.parametrize("numel", [1, 3, 16, 40])
def test_moments_of_short_weights_over_keys(law: Perturbation, numel: int) -> None:
    """Element by element over many keys: mean 0, covariance I."""
    draws = torch.stack([whole(law, weight(numel), mix(5, step)) for step in range(4000)]).double()
    assert float(draws.mean(0).abs().max()) < 4.5 / 4000**0.5
    covariance = draws.T @ draws / len(draws)
    assert float((covariance - torch.eye(numel)).abs().max()) < 5.5 * (2 / 4000) ** 0.5


def test_same_key_same_draw_and_another_key_another(law: Perturbation) -> None:
    first = whole(law, weight(1000), key=42)
    second = whole(law, weight(1000), key=43)
    assert torch.equal(first, whole(law, weight(1000), key=42))
    assert not torch.equal(first, second)
    assert torch.equal(first, whole(type(law)(), weight(1000), key=42))


def test_pieces_of_one_weight_are_independent(law: Perturbation) -> None:
    z = whole(law, weight(2 * CHUNK + 5000), key=9).double()
    first, second, rest = z[:CHUNK], z[CHUNK : 2 * CHUNK], z[2 * CHUNK :]
    assert abs(float((first * second).mean())) < 5 / CHUNK**0.5
    assert abs(float((first[:5000] * rest).mean())) < 5 / 5000**0.5


@pytest.mark.parametrize("what", ["seed", "step", "direction", "weight"])
def test_directions_are_uncorrelated_across(law: Perturbation, what: str) -> None:
    """Covariance over 200,000 elements of two draws that differ in one part of what they are for."""
    count = 200_000
    model = nn.Module()
    for name in ("a", "b"):
        model.register_parameter(name, nn.Parameter(torch.zeros(count)))
    blocks = partition(trainable_weights(model))
    ones = torch.ones(2, dtype=torch.float64)
    choice = Choice(torch.ones(2, dtype=torch.bool), ones, ones)

    def draw(seed: int = 0, step: int = 0, direction: int = 0, weight: int = 0) -> Tensor:
        directions = Directions(blocks, choice, law, seed, step, count=2)
        values, factor = directions.draw(direction, blocks[weight].weights[0], 0, count)
        return values.double() * factor

    base, other = draw(), draw(**{what: 1})
    assert not torch.equal(base, other)
    assert abs(float((base * other).mean())) < 5 / count**0.5


@pytest.mark.parametrize("numel", [1, 7, 8, 9, 15, 16, 17, 1001])
def test_rademacher_is_plus_or_minus_one(numel: int) -> None:
    law = Rademacher()
    whole(law, weight(CHUNK), 1)  # leaves its buffers full of other draws
    z = whole(law, weight(numel), 3)
    assert torch.equal(z.abs(), torch.ones(numel))


def test_rademacher_signs_of_each_place_in_a_byte() -> None:
    z = whole(Rademacher(), weight(1 << 19), 4).view(-1, 8).double()
    covariance = z.T @ z / len(z)
    assert float((covariance - torch.eye(8)).abs().max()) < 5 / len(z) ** 0.5
    assert float(z.mean(0).abs().max()) < 5 / len(z) ** 0.5


def pool_draw(law: GaussianPool, numel: int, key: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, float]:
    return law.draw(Weight("w", nn.Parameter(torch.zeros(numel, dtype=dtype)), 0), key, 0, numel, dtype)


def test_pool_is_scaled_and_drawn_anew_each_step() -> None:
    law = GaussianPool()
    draws = []
    for step in (0, 1, 0):
        law.begin(7, step)
        values, factor = pool_draw(law, CHUNK, 3)
        pool = next(iter(law._pools._pools.values())).wide
        assert pool.numel() == 2 * CHUNK
        assert float(pool.double().square().mean()) == pytest.approx(1.0, abs=1e-6)
        draws.append(values * factor)
    assert torch.equal(draws[0], draws[2])
    assert abs(float((draws[0] * draws[1]).mean())) < 5 / CHUNK**0.5


def test_pool_offsets_reach_both_ends_and_both_signs() -> None:
    law = GaussianPool()
    seen = {}
    for key in range(2000):
        values, factor = pool_draw(law, CHUNK, key)
        offset = values.storage_offset()
        assert offset % 64 == 0
        assert 0 <= offset <= CHUNK
        seen[offset] = factor
    assert min(seen) < CHUNK / 50
    assert max(seen) > CHUNK * 49 / 50
    assert abs(sum(seen.values())) < 5 * len(seen) ** 0.5


@pytest.mark.parametrize("fresh", [True, False])
def test_why_the_pool_is_drawn_anew(fresh: bool) -> None:
    """The mean of ⟨u, g⟩u over 2,000 steps, for a short piece of a small pool, against g: a pool that stays is biased.

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
    assert law.scratch_bytes() == 2 * CHUNK * (2 + 4)


@pytest.mark.parametrize("numel", [1, 63, 64, 1000, CHUNK])
def test_pool_knows_the_energy(numel: int) -> None:
    law = GaussianPool()
    for key in range(5):
        values, factor = pool_draw(law, numel, key)
        energy = law.energy(weight(numel), key, 0, numel)
        assert energy == pytest.approx(float((values.double() * factor).square().sum()), rel=1e-6)


def test_pool_is_not_written_by_steps() -> None:
    from zolit import CurvZO

    law = GaussianPool()
    model = nn.Linear(5, 3)
    optimizer = CurvZO(model, blocks="parameter", perturbation=law, lr=1e-3, momentum=0.9)
    for step in range(3):
        optimizer.step(lambda: model(torch.ones(2, 5)).square().mean(1))
        used = next(iter(law._pools._pools.values())).wide.clone()
        law.begin(0, -1)
        pool_draw(law, 1, 0)
        law.begin(0, step)
        pool_draw(law, 1, 0)
        assert torch.equal(next(iter(law._pools._pools.values())).wide, used)


def test_gaussian_does_not_depend_on_threads() -> None:
    threads = torch.get_num_threads()
    try:
        draws = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            draws.append(whole(Gaussian(), weight(CHUNK + 70_001), 4))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("shape", [(1000, 576), (3, CHUNK), (2, CHUNK + 3), (70, 8000), (5, 3, 7), (CHUNK + 5,)])
def test_pieces_are_whole_rows(law: Perturbation, shape: tuple[int, ...]) -> None:
    matrix = Weight("w", nn.Parameter(torch.zeros(shape)), 0)
    ranges = list(law.ranges(matrix))
    row = matrix.parameter[0].numel()
    assert ranges[0][0] == 0
    assert ranges[-1][1] == matrix.parameter.numel()
    assert all(stop == start for (_, stop), (start, _) in pairwise(ranges))
    assert all(stop - start <= CHUNK for start, stop in ranges)
    if row <= CHUNK:
        assert all(start % row == 0 for start, _ in ranges)


def test_scratch_is_a_chunk_whatever_the_weights(law: Perturbation) -> None:
    for numel in (10, 2 * CHUNK + 1):
        whole(law, weight(numel), 1)
    assert 0 < law.scratch_bytes() <= 8 * CHUNK + 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_pool_are_those_of_the_pieces(dtype: torch.dtype) -> None:
    law, to = GaussianPool(), Weight("w", nn.Parameter(torch.zeros(3000, 500, dtype=dtype)), name_key("w"))
    law.begin(0, 3)
    ids = torch.tensor([0, 2999, 1, 1023, 1024, 1047, 1048, 7])
    whole_rows = torch.cat([factor * z for z, factor in (law.draw(to, 5, *ends, dtype) for ends in law.ranges(to))])
    assert len(law.ranges(to)) > 2
    assert torch.equal(law.rows(to, 5, ids), whole_rows.view(3000, 500)[ids])


@pytest.mark.parametrize(
    ("device", "sizes", "expected"),
    [
        ("cpu", [132], 1 << 15),
        ("cpu", [1000, 47_616], 1 << 17),
        ("cpu", [1 << 17], CHUNK),
        ("cpu", [1 << 30], CHUNK),
        ("cuda", [132], 1 << 20),
        ("cuda", [1 << 20] * 512, 1 << 22),
        ("cuda", [7_000_000_000], 1 << 23),
    ],
)
def test_chunks_go_with_the_model(device: str, sizes: list[int], expected: int) -> None:
    assert chunk(torch.device(device), sizes) == expected


def test_a_bound_law_has_a_pool_of_two_chunks() -> None:
    law, to = GaussianPool(), weight(132)
    law.bind([to])
    law.begin(0, 1)
    assert law.chunk == 1 << 15
    assert whole(law, to, 1).shape == (132,)
    assert law.scratch_bytes() == 2 * (1 << 15) * 4
