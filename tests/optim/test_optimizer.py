from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import layered, regression, same, weights_of
from zolit import CurvZO, MeZO, NonFiniteLossError, ZerothOrder
from zolit.optim.collectives import Collectives

METHODS = {
    "mezo": lambda model, **options: MeZO(model, momentum=0.9, weight_decay=0.1, **options),
    "curvzo": lambda model, **options: CurvZO(model, momentum=0.9, budget=1.0, **options),
    "parameters": lambda model, **options: CurvZO(model, blocks="parameter", **options),
}


@pytest.fixture(params=METHODS)
def make(request: pytest.FixtureRequest) -> Callable[..., ZerothOrder]:
    return METHODS[request.param]


def flatten(state: object) -> list[Tensor]:
    """Returns copies of all tensors of a nested state."""
    if isinstance(state, Tensor):
        return [state.clone()]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for part in parts for tensor in flatten(part)]


class Spoiled:
    """A closure whose calls in ``bad`` return a loss that is not finite."""

    def __init__(self, model: nn.Module, bad: set[int], value: float = math.nan, per_example: bool = False) -> None:
        self._closure = regression(model)
        self._bad, self._value, self._per_example = bad, value, per_example
        self.calls = 0

    def __call__(self) -> Tensor:
        losses = self._closure()
        if self.calls in self._bad:
            if self._per_example:
                losses[3] = self._value
            else:
                losses = losses.new_full((), self._value)
        self.calls += 1
        return losses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_a_loss_that_is_not_finite_changes_nothing(
    make: Callable[..., ZerothOrder], which: int, value: float, dtype: torch.dtype
) -> None:
    model = layered(dtype)
    optimizer = make(model, lr=1e-3)
    closure = Spoiled(model, {4 + which}, value, per_example=which == 0)
    optimizer.step(closure)
    optimizer.step(closure)
    before, knowledge = weights_of(model), flatten(optimizer.state_dict()["zo"])
    with pytest.warns(RuntimeWarning, match="step 2.*not all finite"):
        optimizer.step(closure)
    after = weights_of(model)
    if dtype == torch.bfloat16:
        assert same(after, before)
    else:
        assert all(torch.allclose(after[name], theta, rtol=0, atol=1e-15) for name, theta in before.items())
    assert all(map(torch.equal, flatten(optimizer.state_dict()["zo"]), knowledge))
    report = optimizer.last_step
    assert report.skipped
    assert (report.skipped_steps, report.step) == (1, 2)
    assert report.coefficients == (0.0,)
    assert report.total_forward_passes == closure.calls == 6
    optimizer.step(closure)
    assert not optimizer.last_step.skipped
    assert (optimizer.last_step.skipped_steps, optimizer.last_step.step) == (1, 3)
    assert not same(weights_of(model), before)


def test_warns_once_and_stops_after_max_skipped_in_a_row(make: Callable[..., ZerothOrder]) -> None:
    model = layered(torch.bfloat16)
    optimizer = make(model, lr=1e-3, max_skipped=3)
    closure = Spoiled(model, set(range(1000)))
    before = weights_of(model)
    with pytest.warns(RuntimeWarning, match="not all finite") as caught:
        optimizer.step(closure)
    assert len(caught) == 1
    optimizer.step(closure)  # pytest turns a second warning into an error
    with pytest.raises(NonFiniteLossError, match="max_skipped"):
        optimizer.step(closure)
    assert same(weights_of(model), before)


def test_a_finite_loss_resets_the_count_of_skipped_steps_in_a_row(make: Callable[..., ZerothOrder]) -> None:
    model = layered()
    optimizer = make(model, lr=1e-3, max_skipped=2)
    closure = Spoiled(model, {2, 6, 10, 14})  # every other step
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(9):
            optimizer.step(closure)
    assert optimizer.last_step.skipped_steps == 4
    assert not optimizer.last_step.skipped


def test_the_count_in_a_row_survives_a_resume(make: Callable[..., ZerothOrder]) -> None:
    model = layered()
    optimizer = make(model, lr=1e-6, max_skipped=2)
    closure = Spoiled(model, set(range(100)))
    with pytest.warns(RuntimeWarning, match="not all finite"):
        optimizer.step(closure)
    fresh = make(model, lr=1e-6, max_skipped=2)
    fresh.load_state_dict(optimizer.state_dict())
    with pytest.raises(NonFiniteLossError):
        fresh.step(closure)


def test_the_warning_points_at_the_callers_line() -> None:
    model = layered()
    optimizer = MeZO(model, lr=1e-6)
    with pytest.warns(RuntimeWarning, match="not all finite") as caught:
        optimizer.step(Spoiled(model, {0, 1, 2}))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("give_up", [1, 2, 3, 11])
def test_the_error_has_no_wrong_ordinal(give_up: int) -> None:
    model = layered()
    optimizer = MeZO(model, lr=1e-6, max_skipped=give_up)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(give_up - 1):
            optimizer.step(Spoiled(model, {0, 1, 2}))
        with pytest.raises(NonFiniteLossError) as caught:
            optimizer.step(Spoiled(model, {0, 1, 2}))
    assert not any(slip in str(caught.value) for slip in ("1th step", "2th step", "3th step") if give_up < 10)


def test_losses_are_averaged_over_ranks_before_they_are_used() -> None:
    """Both ranks move by the mean loss; here the mean is given, and the losses of the closures do not matter."""
    first, second = layered(), layered()
    one, two = CurvZO(first, lr=1e-3), CurvZO(second, lr=1e-3)
    given = torch.tensor([1.5, 1.25])
    calls = []

    class Given(Collectives):
        def all_mean(self, own: Tensor) -> Tensor:
            calls.append(own.shape)
            return given

    one.collectives = two.collectives = Given()
    closure = regression(first)
    assert one.step(closure) == 1.375
    assert two.step(lambda: torch.tensor(1e9)) == 1.375
    assert calls == [(2,), (2,)]
    assert one.last_step.losses == (1.5, 1.25)
    for name, theta in weights_of(first).items():
        assert torch.allclose(theta, weights_of(second)[name], atol=1e-6)


def test_the_example_of_the_docstring() -> None:
    model = nn.Linear(4, 1)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)
    optimizer = ZerothOrder(model, lr=1e-2)
    losses = [optimizer.step(lambda: (model(inputs) - targets).square().mean(1)) for _ in range(100)]
    assert losses[-1] < 0.9 * losses[0]
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.last_step.loss == losses[-1]


def test_state_dict_holds_no_big_state_without_momentum_or_scores() -> None:
    model = layered()
    optimizer = MeZO(model, lr=1e-6)
    optimizer.step(regression(model))
    assert flatten(optimizer.state_dict()) == []


def test_tied_weights_move_once() -> None:
    """A weight that is used in two places is probed along one u and moved once along it."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, inputs: Tensor) -> Tensor:
            return self.second(self.first(inputs)).sum(1)

    model = Tied()
    optimizer = MeZO(model, lr=1e-3, eps=1e-2)
    seen, origin = [], model.first.weight.detach().clone()

    def spy() -> Tensor:
        seen.append(model.second.weight.detach().clone())
        return model(torch.ones(2, 4))

    optimizer.step(spy)
    assert len(optimizer.blocks) == 1
    u = (seen[0] - origin) / 1e-2
    assert torch.allclose(model.first.weight, origin - 1e-3 * optimizer.last_step.coefficients[0] * u, atol=1e-5)
    assert model.first.weight is model.second.weight


def test_frozen_weights_are_never_moved() -> None:
    model = layered()
    model.embed.requires_grad_(False)
    before = weights_of(model)
    optimizer = CurvZO(model, lr=1e-2, weight_decay=0.1, momentum=0.9)
    for _ in range(5):
        optimizer.step(regression(model))
    assert torch.equal(model.embed.weight, before["embed.weight"])
    assert not torch.equal(model.layers[0].weight, before["layers.0.weight"])


def test_scratch_bytes_do_not_grow() -> None:
    model = layered(torch.bfloat16)
    optimizer = CurvZO(model, lr=1e-6)
    closure = regression(model)
    sizes = []
    for _ in range(20):
        optimizer.step(closure)
        sizes.append(optimizer.scratch_bytes())
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert sizes[-1] <= max(sizes[:3]) + weights
    assert sizes[-1] < 32 * 2**20 + weights  # chunks of noise and of upcast weights, a pool of random bits
