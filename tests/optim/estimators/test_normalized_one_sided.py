"""Steps that are normalized by the spread of losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.quadratic import SLOPES, bent
from tests.helpers.tiny import layered, regression, same, weights_of
from zolit import FZOO, UserError
from zolit.optim.estimators.normalized_one_sided import NormalizedOneSided


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


def test_out_of_range() -> None:
    for make in (lambda: NormalizedOneSided(1), lambda: NormalizedOneSided(3, "code")):
        with pytest.raises(UserError, match="directions"):
            make()
    with pytest.raises(UserError, match="variant"):
        NormalizedOneSided(4, "published")
