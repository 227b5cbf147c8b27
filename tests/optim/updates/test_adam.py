"""Compares Adam and backpropagation with torch's own optimizers on the same gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import DEVICE, layered, regression, weights_of
from zolit import FirstOrder, UserError, ZerothOrder
from zolit.optim.updates.adam import Adam
from zolit.optim.updates.sgd import SGD


def test_first_order_is_torchs_adamw() -> None:
    model, twin = layered(), layered()
    closure, other = regression(model), regression(twin)
    optimizer = FirstOrder(model, lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1)
    matrices = [p for p in twin.parameters() if p.ndim > 1]
    rest = [p for p in twin.parameters() if p.ndim == 1]
    adam = torch.optim.AdamW(
        [{"params": matrices}, {"params": rest, "weight_decay": 0.0}], lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1
    )
    for _ in range(30):
        optimizer.step(closure)
        adam.zero_grad()
        other().mean().backward()
        adam.step()
    for name, theta in weights_of(twin).items():
        torch.testing.assert_close(weights_of(model)[name], theta, rtol=1e-4, atol=1e-5)
    report = optimizer.last_step
    assert (report.total_forward_passes, report.total_backward_passes) == (30, 30)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeroth_order_adam_is_torchs_fed_with_the_estimate(dtype: torch.dtype) -> None:
    """The estimate is the step that SGD makes at a learning rate of 1."""
    model, plain = layered(dtype), layered(torch.float32)
    with torch.no_grad():
        for parameter, theta in zip(plain.parameters(), model.parameters(), strict=True):
            parameter.copy_(theta)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2)
    optimizer = ZerothOrder(model, lr=1e-2, seed=1, update=Adam(rounding="nearest"))
    shadow = layered(torch.float64)
    for step in range(3):
        twin = ZerothOrder(shadow, lr=1.0, eps=1e-3, seed=1, update=SGD())
        twin.counts["steps"] = step
        losses: list[float] = []
        closure = regression(model)

        def recorded(closure: Callable[[], Tensor] = closure, losses: list[float] = losses) -> Tensor:
            losses.append(float(value := closure().float().mean()))
            return value

        optimizer.step(recorded)
        before = {name: theta.zero_() for name, theta in weights_of(shadow).items()}
        with torch.no_grad():
            for name, parameter in shadow.named_parameters():
                parameter.copy_(before[name])
        recorded_losses = iter(losses)
        twin.step(lambda given=recorded_losses: _given_loss(shadow, next(given)))
        for name, parameter in plain.named_parameters():
            parameter.grad = -shadow.get_parameter(name).detach().float()
        adam.step()
    limit = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.0, "atol": 0.02}
    for name, theta in weights_of(plain).items():
        torch.testing.assert_close(weights_of(model)[name].float(), theta, **limit)
    moments = optimizer.update.state_dict()["moments"]
    assert {moment.dtype for moment in moments.values()} == {torch.float32}


def _given_loss(model: nn.Module, loss: float) -> Tensor:
    """Computes with every weight, so that a probe is accepted, and returns a given loss."""
    model(torch.zeros(1, 4, dtype=torch.float64, device=DEVICE))
    return torch.tensor(loss, dtype=torch.float64)


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    model = layered(torch.bfloat16)
    optimizer = FirstOrder(model, lr=1e-2)
    before = weights_of(model)
    with pytest.warns(RuntimeWarning, match="not all finite"):
        optimizer.step(lambda: regression(model)() * float("nan"))
    assert all(torch.equal(theta, before[name]) for name, theta in weights_of(model).items())
    assert not optimizer.update.state_dict()["rule"]["moments"]


@pytest.mark.parametrize(
    ("option", "options"),
    [("betas", {"betas": (1.0, 0.9)}), ("epsilon", {"epsilon": 0.0}), ("weight_decay", {"weight_decay": -1.0})],
)
def test_out_of_range(option: str, options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=option):
        Adam(**options)  # type: ignore[arg-type]  # of several types
