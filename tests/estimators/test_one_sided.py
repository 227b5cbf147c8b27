"""Forward differences, curvatures, and steps normalized by the spread of losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tiny import layered, regression, same, weights_of
from zolit import FZOO, UserError
from zolit.estimators import Central, NoProbes, NormalizedOneSided, OneSided

SLOPES = torch.tensor([3.0, -1.5, 0.25, -2.0], dtype=torch.float64)


def bent(queries: Tensor) -> Tensor:
    """A quadratic: slopes, and a curvature of 6 along each direction."""
    return 2.0 + queries @ SLOPES[: queries.shape[1]] + 3.0 * queries.square().sum(1)


def test_forward_differences_see_the_curvature() -> None:
    estimate = OneSided(2).estimate(bent, 0.1)
    assert estimate.derivatives.tolist() == pytest.approx([3.3, -1.2])
    assert estimate.coefficients.tolist() == pytest.approx([1.65, -0.6])


def test_central_differences_measure_it() -> None:
    estimate = Central().estimate(bent, 0.1)
    assert estimate.coefficients.tolist() == pytest.approx([3.0])
    assert estimate.curvatures is not None
    assert estimate.curvatures.tolist() == pytest.approx([6.0])


def test_spread_divides_the_step() -> None:
    estimate = NormalizedOneSided(4).estimate(bent, 0.1)
    differences = 0.1 * SLOPES + 0.03
    expected = differences / (0.1 * 4 * float(differences.std()))
    torch.testing.assert_close(estimate.coefficients, expected)


def test_code_reuses_half_of_the_losses() -> None:
    estimator = NormalizedOneSided(4, "code")
    first = estimator.estimate(bent, 0.1)
    differences = 0.1 * SLOPES + 0.03
    torch.testing.assert_close(first.coefficients, differences / (4 * float(differences.std(correction=0))))
    asked: list[int] = []

    def watched(queries: Tensor) -> Tensor:
        asked.append(len(queries))
        return bent(queries) + 1.0

    second = estimator.estimate(watched, 0.1)
    assert asked == [3]
    losses = 2.0 + torch.cat([differences[:2] + 1.0, differences[:2]])
    expected = differences[:2] / (2 * float(losses.std(correction=0)))
    torch.testing.assert_close(second.coefficients, torch.cat([expected, torch.zeros(2, dtype=torch.float64)]))


def test_equal_losses_move_nothing() -> None:
    estimate = NormalizedOneSided(4).estimate(lambda queries: torch.ones(len(queries), dtype=torch.float64), 0.1)
    assert not estimate.coefficients.any()


def test_step_does_not_depend_on_the_scale_of_the_loss() -> None:
    moved = []
    for scale in (1.0, 1024.0):
        model = layered(torch.float64)
        closure = regression(model)
        optimizer = FZOO(model, lr=1e-5, eps=1e-4)
        for _ in range(3):
            optimizer.step(lambda closure=closure, scale=scale: scale * closure())
        moved.append(weights_of(model))
    assert not same(moved[0], weights_of(layered(torch.float64)))
    assert all(torch.allclose(theta, moved[1][name], rtol=1e-6) for name, theta in moved[0].items())


def test_nothing_is_asked_where_nothing_is_estimated() -> None:
    def never(queries: Tensor) -> Tensor:
        raise AssertionError

    assert NoProbes().estimate(never, 0.1).coefficients.tolist() == [0.0]


def test_out_of_range() -> None:
    for make in (lambda: OneSided(0), lambda: NormalizedOneSided(1), lambda: NormalizedOneSided(3, "code")):
        with pytest.raises(UserError, match="directions"):
            make()
    with pytest.raises(UserError, match="variant"):
        NormalizedOneSided(4, "published")  # type: ignore[arg-type]
