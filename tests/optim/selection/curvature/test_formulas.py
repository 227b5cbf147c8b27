from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.reference import water_fill_by_bisection
from zolit import UserError
from zolit.optim.selection.curvature.budget import AdaptiveBudget, FixedBudget
from zolit.optim.selection.curvature.formulas import (
    adaptive_budget,
    curvature_score,
    effective_support,
    fill_and_explore,
    normalized_entropy,
    unbiased_score,
    water_fill,
)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def lognormal(count: int, spread: float, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64).mul(spread).exp().to(dtype)


# --- water filling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.8, 0.999])
def test_water_fill_spends_the_budget_and_no_more_than_one_each(
    share: float, spread: float, dtype: torch.dtype
) -> None:
    weights = lognormal(200, spread, seed=3, dtype=dtype)
    pi = water_fill(weights, 200 * share)
    assert pi.dtype == dtype
    assert pi.shape == weights.shape
    assert float(pi.max()) <= 1.0
    assert float(pi.min()) > 0.0
    assert float(pi.sum(dtype=torch.float64)) == pytest.approx(
        200 * share, rel=1e-12 if dtype == torch.float64 else 1e-6
    )
    free = pi < 1.0
    ratios = (pi / weights)[free]
    assert float(ratios.max() / ratios.min()) == pytest.approx(1.0, rel=1e-5)
    if free.any() and not free.all():
        assert float(weights[~free].min()) >= float(weights[free].max()) * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_water_fill_agrees_with_bisection(seed: int) -> None:
    weights = lognormal(37, 1.5, seed)
    weights[seed % 5 :: 7] = 0.0
    budget = 1.0 + seed * 1.7
    assert torch.allclose(water_fill(weights, budget), water_fill_by_bisection(weights, budget), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_water_fill_of_roots_minimizes_the_variance_bound(seed: int) -> None:
    """No move of δ of budget from i to j lowers Σ s/π. As the bound is convex, π is then optimal."""
    scores = lognormal(9, 2.0, seed)
    pi = water_fill(scores.sqrt(), 4.0)
    best = float((scores / pi).sum())
    for delta in (1e-3, 1e-2, 1e-1):
        for i in range(9):
            for j in range(9):
                other = pi.clone()
                other[i] -= delta
                other[j] += delta
                if i != j and other[i] > 0.0 and other[j] <= 1.0:
                    assert float((scores / other).sum()) > best * (1 - 1e-12)


def test_water_fill_is_the_best_of_a_grid() -> None:
    """Brute force over all π on a grid of 1/200 with sum 1.5."""
    scores = double(9.0, 1.0, 0.04)
    grid = torch.arange(1, 201, dtype=torch.float64) / 200.0
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    third = 1.5 - first - second
    bound = torch.where(
        (third > 0) & (third <= 1), scores[0] / first + scores[1] / second + scores[2] / third, torch.inf
    )
    pi = water_fill(scores.sqrt(), 1.5)
    best = float((scores / pi).sum())
    assert best <= float(bound.min()) + 1e-12
    assert best == pytest.approx(float(bound.min()), rel=1e-3)
    assert torch.allclose(pi, double(1.0, 0.5 / 1.2, 0.1 / 1.2))


@pytest.mark.parametrize(
    ("weights", "budget", "expected"),
    [
        ((1.0, 1.0, 1.0, 1.0), 2.0, (0.5, 0.5, 0.5, 0.5)),  # ties
        ((0.0, 0.0, 0.0, 0.0), 1.0, (0.25, 0.25, 0.25, 0.25)),  # no score is known
        ((1e9, 1.0, 1.0, 1.0), 2.0, (1.0, 1 / 3, 1 / 3, 1 / 3)),  # one is huge
        ((1.0, 2.0, 3.0), 3.0, (1.0, 1.0, 1.0)),  # budget = n
        ((0.0, 2.0, 0.0), 3.0, (1.0, 1.0, 1.0)),
        ((5.0, 0.0, 3.0, 0.0), 2.0, (1.0, 0.0, 1.0, 0.0)),  # as many positive as budgeted
        ((5.0, 0.0, 3.0, 0.0), 3.0, (1.0, 0.5, 1.0, 0.5)),  # fewer positive than budgeted
        ((4.0, 1.0, 1.0), 1.5, (1.0, 0.25, 0.25)),  # exactly reaches 1
        ((100.0, 10.0, 1.0, 1.0), 3.0, (1.0, 1.0, 0.5, 0.5)),  # the second is lifted only after the first
        ((1e-150, 1e-150, 2e-150), 1.0, (0.25, 0.25, 0.5)),  # tiny
        ((1e150, 1e-150, 1e-150), 2.0, (1.0, 0.5, 0.5)),
        ((2.0,), 0.3, (0.3,)),
        ((0.0,), 0.3, (0.3,)),
    ],
)
def test_water_fill_hard_cases(weights: tuple[float, ...], budget: float, expected: tuple[float, ...]) -> None:
    assert torch.allclose(water_fill(double(*weights), budget), double(*expected), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("short", [1e-6, 1e-9, 1e-15])
@pytest.mark.parametrize("large", [0, 2])
def test_water_fill_just_below_the_number_of_units(dtype: torch.dtype, short: float, large: int) -> None:
    """In float32 a trial value may raise all π to 1 although the budget is slightly below their number."""
    weights = torch.ones(5, dtype=dtype)
    weights[:large] = 100.0
    pi = water_fill(weights, 5.0 * (1.0 - short))
    assert torch.allclose(pi, torch.ones(5, dtype=dtype), atol=1e-5)


@pytest.mark.parametrize("budget", [0.0, -1.0, 4.1, math.nan])
def test_water_fill_refuses_impossible_budgets(budget: float) -> None:
    with pytest.raises(ValueError, match="budget"):
        water_fill(torch.ones(4), budget)


def test_exploration_keeps_the_budget_and_the_floor() -> None:
    pi = fill_and_explore(lognormal(50, 3.0, 0), 20.0 / 50, 0.05)
    assert float(pi.sum()) == pytest.approx(20.0)
    assert float(pi.min()) >= 0.05
    assert float(pi.max()) <= 1.0


@pytest.mark.parametrize("count", [91, 177, 182])
def test_a_full_budget_samples_all(count: int) -> None:
    assert torch.equal(fill_and_explore(torch.ones(count).double(), 1.0, 0.05), torch.ones(count).double())


# --- support, entropy, budget ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "support", "entropy"),
    [
        ((2.0, 2.0, 2.0, 2.0), 4.0, 1.0),
        ((0.0, 0.0, 0.0, 0.0), 4.0, 1.0),
        ((5.0, 0.0, 0.0, 0.0), 1.0, 0.0),
        ((3.0, 0.0, 3.0, 0.0), 2.0, 0.5),
        ((1.0, 9.0), 16 / 10, -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)),
        ((7.0,), 1.0, 1.0),
    ],
)
def test_support_and_entropy_closed_forms(scores: tuple[float, ...], support: float, entropy: float) -> None:
    assert effective_support(double(*scores)) == pytest.approx(support)
    assert normalized_entropy(double(*scores)) == pytest.approx(entropy, abs=1e-12)


def test_support_and_entropy_do_not_depend_on_scale_and_stay_in_range() -> None:
    scores = lognormal(100, 2.0, 1)
    for function, low, high in ((effective_support, 1.0, 100.0), (normalized_entropy, 0.0, 1.0)):
        assert function(scores) == pytest.approx(function(1e-8 * scores))
        assert low <= function(scores) <= high
        assert function(scores) < function(scores.sqrt())


def test_adaptive_budget_ends() -> None:
    ends = {"minimum": 0.1, "maximum": 0.8, "alpha": 0.7}
    assert adaptive_budget(1.0, 1.0, **ends) == pytest.approx(0.8)
    assert adaptive_budget(0.0, 0.0, **ends) == pytest.approx(0.1)
    assert adaptive_budget(1.0, 0.0, **ends) == pytest.approx(0.1 + 0.7 * 0.7)
    assert adaptive_budget(0.0, 1.0, **ends) == pytest.approx(0.1 + 0.7 * 0.3)
    assert AdaptiveBudget(0.1, 0.8, 0.7).share(0.25, 0.5) == pytest.approx(0.1 + 0.7 * (0.7 * 0.25 + 0.3 * 0.5))
    assert FixedBudget(0.3).share(0.01, 0.02) == 0.3


@pytest.mark.parametrize("share", [0.0, 1.1, -0.2, math.nan])
def test_fixed_budget_out_of_range(share: float) -> None:
    with pytest.raises(UserError, match="budget"):
        FixedBudget(share)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_score_shares_out_the_squared_derivative() -> None:
    scores = curvature_score(-3.0, double(1.0, 0.0, 2.0))
    assert torch.allclose(scores, double(3.0, 0.0, 6.0))
    assert torch.equal(curvature_score(3.0, torch.zeros(4)), torch.zeros(4))


SIZES = (1, 3, 10, 2)
PI = double(0.2, 0.9, 0.5, 1.0)


def sample(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draws u = m ⊙ z over blocks of SIZES; returns g, Δ = ⟨g, u⟩, shape (count,), and ‖u_b‖², shape (count, n)."""
    generator = torch.Generator().manual_seed(seed)
    block = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    g = torch.randn(sum(SIZES), generator=generator, dtype=torch.float64)
    m = torch.rand(count, len(SIZES), generator=generator) < PI
    u = torch.randn(count, sum(SIZES), generator=generator, dtype=torch.float64) * m[:, block]
    norms_of_blocks = torch.zeros(count, len(SIZES), dtype=torch.float64).index_add_(1, block, u.square())
    return g, u @ g, norms_of_blocks


def within(samples: torch.Tensor, expected: torch.Tensor) -> bool:
    """Returns whether the mean is within five standard errors."""
    error = samples.std(0) / len(samples) ** 0.5
    return bool(((samples.mean(0) - expected).abs() < 5 * error).all())


def squared_norms(g: torch.Tensor) -> torch.Tensor:
    return torch.stack([part.square().sum() for part in g.split(list(SIZES))])


def test_expected_score_without_normalization() -> None:
    """The identity in the docstring of ``curvature_score`` holds for the function's output."""
    g, derivatives, norms_of_blocks = sample(30_000)
    scores = torch.stack(
        [curvature_score(d, e) * e.sum() for d, e in zip(derivatives.tolist(), norms_of_blocks, strict=True)]
    )
    sizes, norms = double(*SIZES), squared_norms(g)
    others = (PI * norms).sum() - PI * norms
    assert within(scores, PI * ((sizes + 2) * norms + sizes * others))


def test_unbiased_score_of_blocks() -> None:
    g, derivatives, norms_of_blocks = sample(400_000)
    scores = unbiased_score(derivatives[:, None], norms_of_blocks, PI, double(*SIZES))
    assert within(scores, squared_norms(g))


def test_unbiased_score_of_parameters_is_equation_41() -> None:
    generator = torch.Generator().manual_seed(1)
    g = torch.randn(6, generator=generator, dtype=torch.float64)
    pi = double(0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    m = torch.rand(400_000, 6, generator=generator) < pi
    u = torch.randn(400_000, 6, generator=generator, dtype=torch.float64) * m
    derivative = u @ g
    scores = unbiased_score(derivative[:, None], u.square(), pi, torch.ones(6, dtype=torch.float64))
    assert torch.allclose(scores[0], derivative[0] ** 2 * (u[0].square() - pi) / (pi * (3 - pi)))
    assert within(scores, g.square())
