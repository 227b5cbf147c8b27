"""The factored second moment against a naive reference that forms v whole."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import same, weights_of
from zolit import FirstOrder, UserError
from zolit.optim import Factored
from zolit.optim.updates import fused


class Several(nn.Module):
    """A matrix, a list of matrices as of experts, one that is too thin to factor, a vector and a number."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {"matrix": (9, 7), "experts": (3, 6, 8), "thin": (20, 2), "vector": (5,), "number": ()}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator)))
        self.matrix.data[2:4] = 0.0

    def loss(self, step: int) -> Tensor:
        """Returns a loss whose gradients differ in size by many orders; two rows of the matrix have none."""
        generator = torch.Generator().manual_seed(step)
        total = torch.zeros(())
        for scale, parameter in zip((1e-6, 1.0, 1e3, 1.0, 1e-2), self.parameters(), strict=True):
            target = torch.randn(parameter.shape, generator=generator)
            total = total + scale * (target * parameter.float()[...]).sum() + scale * parameter.float().pow(2).sum()
        return total


def reference(model: Several, steps: int, lr: float, decay: float) -> dict[str, Tensor]:
    """AdaLomo, arXiv 2310.10195, Algorithm 1, with whole matrices in float64."""
    theta = {name: weight.detach().double() for name, weight in model.named_parameters()}
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    for step in range(1, steps + 1):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(theta[name])
        gradients = torch.autograd.grad(model.loss(step - 1), list(model.parameters()))
        beta = 1.0 - step**-0.8
        for name, gradient in zip(theta, gradients, strict=True):
            g = gradient.double()
            square = g.square() + 1e-30
            if name in ("matrix", "experts"):
                rows[name] = beta * rows.get(name, 0.0) + (1 - beta) * square.mean(-1)
                columns[name] = beta * columns.get(name, 0.0) + (1 - beta) * square.mean(-2)
                r, c = rows[name], columns[name]
                v = r.unsqueeze(-1) * c.unsqueeze(-2) / r.mean(-1)[..., None, None]
            else:
                v = whole[name] = beta * whole.get(name, 0.0) + (1 - beta) * square
            u = g / v.sqrt()
            u = u / max(1.0, float(u.square().mean().sqrt()))
            rate = lr * max(1e-3, float(theta[name].square().mean().sqrt()))
            theta[name] = theta[name] * (1.0 - rate * decay * (g.ndim > 1)) - rate * u
    return theta


def trained(lr: float, decay: float, dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, Tensor]:
    model = Several().to(dtype)
    optimizer = FirstOrder(model, lr=lr, rule="factored", weight_decay=decay, **options)
    for step in range(6):
        optimizer.step(lambda step=step: model.loss(step))
    return weights_of(model)


@pytest.mark.parametrize("keep_gradients", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_naive_reference(decay: float, keep_gradients: bool) -> None:
    found = trained(0.1, decay, keep_gradients=keep_gradients)
    for name, theta in reference(Several(), 6, 0.1, decay).items():
        torch.testing.assert_close(found[name].double(), theta, rtol=1e-5, atol=1e-6)


def test_pieces_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(0.1, 0.1, keep_gradients=False)
    monkeypatch.setattr(fused, "chunk_size", lambda *_: 16)  # two rows of a matrix, or one
    found = trained(0.1, 0.1, keep_gradients=False)
    for name, theta in whole.items():
        torch.testing.assert_close(found[name], theta, rtol=1e-5, atol=1e-6)


def test_16_bits_are_rounded_stochastically() -> None:
    """The mean over seeds is that of float32 arithmetic, although a step is below half a unit in the last place."""
    model = nn.Linear(40, 50, bias=False, dtype=torch.bfloat16)
    model.weight.data.fill_(1.0)
    optimizer = FirstOrder(model, lr=1e-3, rule="factored", keep_gradients=False)
    for _ in range(10):
        optimizer.step(lambda: model.weight.float().sum())
    expected = 1.0 - 10 * 1e-3
    assert float(model.weight.detach().double().mean()) == pytest.approx(expected, abs=1e-3)
    nearest = nn.Linear(40, 50, bias=False, dtype=torch.bfloat16)
    nearest.weight.data.fill_(1.0)
    FirstOrder(nearest, lr=1e-3, rule="factored", update_rounding="nearest").step(lambda: nearest.weight.float().sum())
    assert bool((nearest.weight == 1.0).all())


def test_state_is_small() -> None:
    model = nn.Linear(100, 300)
    optimizer = FirstOrder(model, lr=1e-3, rule="factored", keep_gradients=False)
    optimizer.step(lambda: model(torch.ones(2, 100)).square().mean(1))
    averages = optimizer.update.state_dict()["rule"]["averages"]
    assert {name: own.numel() for name, own in averages.items()} == {"weight": 400, "bias": 300}
    assert {own.dtype for own in averages.values()} == {torch.float32}


def test_a_learning_rate_of_zero_moves_nothing() -> None:
    assert same(trained(0.0, 0.3), weights_of(Several()))


@pytest.mark.parametrize(("option", "value"), [("weight_decay", -1.0), ("weight_decay", math.inf), ("rounding", "up")])
def test_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(UserError, match=option):
        Factored(**{option: value})
