"""Compares the filter with its closed form, and its two variants with each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from zolit import UserError
from zolit.optim.estimators.bayesian import Bayesian

SLOPES = torch.tensor([3.0, -1.5, 0.25], dtype=torch.float64)


def linear(queries: Tensor) -> Tensor:
    """L(θ + Σ cᵢuᵢ) = 2 + c·slopes."""
    return 2.0 + queries @ SLOPES[: queries.shape[1]]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_mean_is_shrunk_by_the_ratio_of_variances(count: int) -> None:
    """Corollary 3.6: with m = k and a fixed σ_e, μ = γ y, γ = σ_p² / (σ_p² + σ_e²)."""
    estimate = Bayesian(count, count, prior=2.0, noise=3.0, smoothing=0.0).estimate(linear, 1e-3)
    torch.testing.assert_close(estimate.derivatives, SLOPES[:count], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(estimate.coefficients, SLOPES[:count] * 4.0 / 13.0, rtol=1e-9, atol=1e-9)


def test_a_cached_measurement_counts_again() -> None:
    """The third of three measurements repeats the first: the first direction has the γ of two observations."""
    estimate = Bayesian(2, 3, prior=2.0, noise=3.0, smoothing=0.0).estimate(linear, 1e-3)
    assert estimate.coefficients.tolist() == pytest.approx([3.0 * 8.0 / 17.0, -1.5 * 4.0 / 13.0])


def test_an_outlier_is_damped_and_remembered() -> None:
    """A derivative of 30 σ_p moves the weights less than one of σ_p, because σ_e adapts to the residual."""

    def steep(queries: Tensor) -> Tensor:
        return 30.0 * queries.sum(1)

    estimator = Bayesian(2, 3, prior=1.0, noise=1e-3, variant="code")
    large = float(estimator.estimate(steep, 1e-3).coefficients[0])
    small = float(
        Bayesian(2, 3, prior=1.0, noise=1e-3, variant="code").estimate(lambda c: c.sum(1), 1e-3).coefficients[0]
    )
    assert abs(large) < 0.5
    assert abs(small) > 0.8
    assert estimator.state_dict()["variance"] > 50.0
    fresh = Bayesian(2, 3, prior=1.0, noise=1e-3, variant="code")
    fresh.load_state_dict(estimator.state_dict())
    assert torch.equal(fresh.estimate(linear, 1e-3).coefficients, estimator.estimate(linear, 1e-3).coefficients)


def published(memory: float, slopes: list[float], prior: float, noise: float) -> tuple[list[float], float]:
    """Does what the published code does in a step with m = k: σ_e is limited where it is used, its average is not."""
    means = []
    for y in slopes:
        memory = 0.9 * memory + 0.1 * y**2
        sigma = max(0.1 * noise, memory**0.5)
        means.append(prior**2 / (prior**2 + sigma**2) * y)
    return means, memory


@pytest.mark.parametrize("quiet", [0, 30, 120])
def test_the_moving_average_falls_below_the_limit_of_the_code(quiet: int) -> None:
    """After steps with small residuals, σ_e stays at its limit longer than an average that was cut off."""
    estimator, memory = Bayesian(2, 2, prior=2.0, noise=3.0, variant="code"), 9.0
    for slopes in [[1e-3, -1e-3]] * quiet + [[1.2, -0.3]] * 4:

        def loss(queries: Tensor, slopes: list[float] = slopes) -> Tensor:
            return 2.0 + queries @ torch.tensor(slopes, dtype=torch.float64)

        means, memory = published(memory, slopes, prior=2.0, noise=3.0)
        assert estimator.estimate(loss, 1e-3).coefficients.tolist() == pytest.approx(means, rel=1e-6)
        assert estimator.state_dict()["variance"] == pytest.approx(memory, rel=1e-6)


@pytest.mark.parametrize(("adaptive", "asked"), [(False, [4]), (True, [4, 2, 2])])
def test_queries(adaptive: bool, asked: list[int]) -> None:
    """The center and the directions are one call. BSZO-B asks for the center again, with the leading eigenvector."""
    calls: list[Tensor] = []

    def watched(queries: Tensor) -> Tensor:
        calls.append(queries)
        return linear(queries)

    Bayesian(3, 5, noise=0.5, adaptive=adaptive).estimate(watched, 1e-2)
    assert [len(call) for call in calls] == asked
    assert not calls[0][0].any()
    for call in calls[1:]:
        assert not call[0].any()
        assert float(call[1].norm()) == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("directions", {"directions": 0, "queries": 1}),
        ("queries", {"directions": 3, "queries": 2}),
        ("prior", {"prior": 0.0}),
        ("noise", {"noise": -1.0}),
        ("smoothing", {"smoothing": 1.5}),
        ("variant", {"variant": "published"}),
    ],
)
def test_out_of_range(option: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{option}"):
        Bayesian(**options)
