from __future__ import annotations

import pytest
import torch

from zolit.optim.updates.rounding import Upcaster

COUNT = 1 << 18


def rounded(value: float, dtype: torch.dtype, key: int | None, count: int = COUNT) -> torch.Tensor:
    """Moves ``count`` zeros of a 16-bit type to ``value`` in float32, and returns them rounded."""
    piece = torch.zeros(count, dtype=dtype)
    with Upcaster().upcast([piece], key) as (wide,):
        wide.fill_(value)
    return piece


def neighbors(value: float, dtype: torch.dtype) -> tuple[float, float]:
    """Returns the two numbers of the type between which a value lies."""
    nearest = torch.tensor(value, dtype=torch.float32).to(dtype)
    to = torch.tensor(float("inf") if float(nearest) < value else -float("inf"), dtype=dtype)
    other = torch.nextafter(nearest, to)
    low, high = sorted((float(nearest), float(other)))
    assert low < value < high
    return low, high


CASES = [
    (torch.bfloat16, 1.003),
    (torch.bfloat16, -0.02003),
    (torch.bfloat16, 3.3e-38),
    (torch.bfloat16, 1.0 - 2.0**-12),  # the upper neighbor has another exponent
    (torch.float16, 1.0003),
    (torch.float16, -0.020003),
    (torch.float16, 6.1234e-5),  # just above the least normal number, 6.1035e-5
    (torch.float16, 6.09e-5),  # subnormal
    (torch.float16, -3.14159e-6),
    (torch.float16, 2.0e-8),  # below the least subnormal number, 6e-8
    (torch.float16, -2.0e-8),
    (torch.float16, 0.7 * 2.0**-24),
]


@pytest.mark.parametrize(("dtype", "value"), CASES)
def test_stochastic_rounding_is_right_on_average(dtype: torch.dtype, value: float) -> None:
    value = float(torch.tensor(value, dtype=torch.float32))
    low, high = neighbors(value, dtype)
    result = rounded(value, dtype, key=11).double()
    assert set(result.unique().tolist()) <= {low, high}
    chance = (value - low) / (high - low)
    share = float((result == high).double().mean())
    assert abs(share - chance) < 5 * (chance * (1 - chance) / COUNT) ** 0.5 + 2.0**-13


@pytest.mark.parametrize(("dtype", "value"), CASES)
def test_without_a_key_rounds_to_nearest(dtype: torch.dtype, value: float) -> None:
    assert torch.equal(rounded(value, dtype, key=None, count=8), torch.full((8,), value, dtype=torch.float32).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_the_type_are_never_moved(dtype: torch.dtype) -> None:
    """For all finite numbers of the type, in several draws: a number that needs no rounding must not change."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    upcaster = Upcaster()
    for key in range(40):
        piece = every.clone()
        with upcaster.upcast([piece], key):
            pass
        wrong = piece != every
        assert not wrong.any(), f"{every[wrong].tolist()} became {piece[wrong].tolist()}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_same_key_same_result(dtype: torch.dtype) -> None:
    first, again, other = (rounded(1.0003, dtype, key, count=1001) for key in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_neighbors_are_rounded_independently(dtype: torch.dtype) -> None:
    """Draws at small distances are uncorrelated, also where four 16-bit words share a 64-bit word."""
    result = rounded(1.0 + 0.5 * torch.finfo(dtype).eps, dtype, key=3).double() - 1.0
    centered = (result - result.mean()) / result.std()
    for lag in (1, 2, 3, 4, 8):
        assert abs(float((centered[lag:] * centered[:-lag]).mean())) < 5 / COUNT**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_weights_are_not_copied(dtype: torch.dtype) -> None:
    piece = torch.randn(5, generator=torch.Generator().manual_seed(0)).to(dtype)
    with Upcaster().upcast([piece], 1) as (wide,):
        assert wide is piece


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_update_that_raises_writes_nothing(dtype: torch.dtype) -> None:
    piece = torch.ones(4, dtype=dtype)
    with pytest.raises(RuntimeError, match="shape"), Upcaster().upcast([piece], 1) as (wide,):
        wide.fill_(2.0).view(3)
    assert torch.equal(piece, torch.ones(4, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("start", [1.0, -1.0])
def test_small_updates_add_up_only_when_rounded_stochastically(dtype: torch.dtype, start: float) -> None:
    """500 moves by 1/50 of a unit in the last place: ten units on average, and none if rounded to nearest."""
    unit = torch.finfo(dtype).eps
    upcaster = Upcaster()
    nearest, stochastic = (torch.full((2000,), start, dtype=dtype) for _ in range(2))
    for step in range(500):
        with upcaster.upcast([nearest]) as (wide,):
            wide.add_(unit / 50)
        with upcaster.upcast([stochastic], step) as (wide,):
            wide.add_(unit / 50)
    assert torch.equal(nearest, torch.full_like(nearest, start))
    drift = float((stochastic.double() - start).mean())
    assert drift == pytest.approx(10 * unit, rel=0.05)
