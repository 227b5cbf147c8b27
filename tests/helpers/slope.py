"""A linear loss of a matrix and a vector, and the mean of estimates of its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zolit import ZerothOrder
from zolit.optim.perturbation.base import Perturbation


class Slope(nn.Module):
    """L(W, b) = ⟨G, W⟩ + ⟨g, b⟩: central differences are exact."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.gradient = torch.randn(*shape, generator=generator).double()
        self.weight = nn.Parameter(torch.zeros(*shape).double())
        self.bias = nn.Parameter(torch.zeros(5).double())

    def forward(self) -> Tensor:
        return (self.weight * self.gradient).sum() + self.bias.sum()


def estimates(law: Perturbation, model: Slope, steps: int) -> Tensor:
    """Returns ĝ of the matrix in each step, shape (steps, *shape)."""
    optimizer, found = ZerothOrder(model, lr=1.0, eps=1e-2, perturbation=law), []
    for _ in range(steps):
        optimizer.step(model)
        found.append(-model.weight.detach().clone())
        with torch.no_grad():
            model.weight.zero_()
            model.bias.zero_()
    return torch.stack(found)


def assert_mean(found: Tensor, expected: Tensor) -> None:
    """Asserts that the mean is as expected: squared errors, in units of the standard error, are 1 on average."""
    errors = (found.mean(0) - expected) / (found.std(0) / len(found) ** 0.5)
    assert float(errors.square().mean()) == pytest.approx(1.0, abs=0.7)
    assert float((found.mean(0) - expected).norm()) < 0.6 * float(expected.norm())
