"""Compares the plain four-pass step with its formula."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.tiny import layered, regression, weights_of
from zolit.cli.bench.baseline import FourPass


def test_baseline_moves_along_its_probes() -> None:
    model = layered(torch.float64)
    origin, seen, losses = weights_of(model), [], []
    closure = regression(model)

    def spy() -> torch.Tensor:
        seen.append(weights_of(model))
        losses.append(float(closure().mean()))
        return closure()

    assert FourPass(model, lr=0.1, eps=1e-3).step(spy) == pytest.approx(sum(losses) / 2)
    up, down = seen
    derivative = (losses[0] - losses[1]) / 2e-3
    z = {name: (up[name] - theta) / 1e-3 for name, theta in origin.items()}
    assert 0.5 < float(torch.cat([value.flatten() for value in z.values()]).std()) < 1.5
    assert derivative != 0.0
    for name, moved in weights_of(model).items():
        assert torch.allclose(down[name], origin[name] - 1e-3 * z[name], rtol=0, atol=1e-12)
        assert torch.allclose(moved, origin[name] - 0.1 * derivative * z[name], rtol=0, atol=1e-10)


def test_baseline_restores_the_weights() -> None:
    model = layered()
    before = weights_of(model)
    baseline = FourPass(model, lr=0.0, eps=1e-3)
    for _ in range(3):
        baseline.step(regression(model))
    assert all(torch.allclose(weights_of(model)[name], value, rtol=0, atol=1e-6) for name, value in before.items())


def test_baseline_draws_a_new_direction_each_step() -> None:
    model = layered(torch.float64)
    seen = []
    closure = regression(model)

    def spy() -> torch.Tensor:
        seen.append(weights_of(model)["embed.weight"])
        return closure()

    baseline = FourPass(model, lr=0.0, eps=1e-3)
    baseline.step(spy)
    baseline.step(spy)
    assert not torch.allclose(seen[0], seen[2], rtol=0, atol=1e-6)
