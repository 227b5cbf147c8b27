"""Perturbed weights: their description, copies of them, and expressions of several of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.alike import assert_probed_alike
from zolit import MeZO


def test_perturbed_weights_describe_theta() -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    found = []

    def spy() -> Tensor:
        weight = model.weight
        found.append((weight.dtype, weight.shape, weight.device.type, weight.ndim, weight.numel(), len(weight)))
        assert isinstance(weight, nn.Parameter)
        return model(torch.ones(1, 3, dtype=weight.dtype)).float().square().mean()

    MeZO(model, lr=1e-6).step(spy)
    assert found == [(torch.bfloat16, (2, 3), "cpu", 2, 6, 2)] * 2


def test_a_model_cannot_be_copied_during_a_probe() -> None:
    model = nn.Linear(3, 3)
    optimizer = MeZO(model, lr=1e-6)
    optimizer.step(lambda: model(torch.ones(1, 3)).square().mean())
    with pytest.raises(RuntimeError, match="between two steps"):
        optimizer.step(lambda: copy.deepcopy(model)(torch.ones(1, 3)).mean())


class Expression(nn.Module):
    """A model that is one expression of a few weights."""

    def __init__(self, compute: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6, 6))
        self.v, self.e = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(0, 6))
        self.compute = compute

    def forward(self, inputs: Tensor) -> Tensor:
        return self.compute(self, inputs)


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, x: functional.linear(x, m.a * m.v),
        lambda m, x: functional.linear(m.a, m.b) + x.sum(),
        lambda m, x: functional.linear(m.a, m.b, m.v) * m.v,
        lambda m, x: x @ (m.a @ m.b).t() * m.v,
        lambda m, x: torch.cat([m.a, m.b]).sum(0) * x,
        lambda m, x: torch.einsum("ij,kj->ik", x, m.a) + m.v,
        lambda m, x: x @ m.a.detach().to(torch.float64).view(6, 6)[:, ::2] @ m.b[:3],
        lambda m, x: (m.a.data.clone().mul_(2.0) @ x[0]) + m.v.square().sum() * m.v,
        lambda m, x: torch.stack((m.v, m.v * 2.0)).sum() * x,
    ],
)
def test_expressions_of_several_weights(compute: Callable[..., Tensor]) -> None:
    assert_probed_alike(lambda: Expression(compute), torch.randn(5, 6, dtype=torch.float64))
