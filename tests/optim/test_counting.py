"""A step with a loss, a gradient or an estimate that is not finite moves nothing, whatever the method."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers.runs import assert_same
from tests.helpers.tiny import Layered, layered, regression, same, weights_of
from zolit import FirstOrder, HiZFO, MeZO, NonFiniteLossError, SensZOQ, ZerothOrder

METHODS: dict[str, Callable[[Layered], ZerothOrder]] = {
    "first order": lambda model: FirstOrder(model, lr=1e-2),
    "hi-zfo": lambda model: HiZFO(model, lr=1e-2, eps=1e-2, interval=1),
    "sens-zoq": lambda model: SensZOQ(model, lr=1e-2, eps=1e-2),
}


def bad_gradient(model: Layered, closure: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Adds the root of 0: its value is 0, and its gradient is infinite times 0."""
    return lambda: closure() + (model.head.weight * 0.0).sum().sqrt()


@pytest.mark.parametrize("name", METHODS)
def test_a_gradient_that_is_not_finite(name: str) -> None:
    model = layered()
    optimizer = METHODS[name](model)
    closure = regression(model)
    before = weights_of(model)
    state = optimizer.state_dict()["zo"]["update"]
    with pytest.warns(RuntimeWarning, match=r"the gradient of head\.weight is not finite; the weights did not move"):
        optimizer.step(bad_gradient(model, closure))
    assert optimizer.last_step.skipped
    assert all(torch.tensor(optimizer.last_step.losses).isfinite())
    assert same(weights_of(model), before)
    assert_same(optimizer.state_dict()["zo"]["update"], state)
    optimizer.step(closure)
    assert not optimizer.last_step.skipped
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_many_gradients_that_are_not_finite_stop_the_run() -> None:
    model = layered()
    optimizer = FirstOrder(model, lr=1e-2, max_skipped=3)
    closure = bad_gradient(model, regression(model))
    with pytest.warns(RuntimeWarning, match="is not finite"):
        optimizer.step(closure)
    optimizer.step(closure)
    with pytest.raises(NonFiniteLossError, match=r"head\.weight is not finite, for 3 steps in a row"):
        optimizer.step(closure)


def test_an_estimate_that_is_not_finite() -> None:
    """Two finite losses can differ by more than float64 holds."""
    model = layered(torch.float64)
    optimizer = MeZO(model, lr=1e-2, eps=1e-3)
    losses = iter([1e308, -1e308])
    before = weights_of(model)
    closure = regression(model)
    with pytest.warns(RuntimeWarning, match="the gradient estimate is not finite"):
        optimizer.step(lambda: closure().mean() * 0.0 + next(losses))
    assert same(weights_of(model), before)
