from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.tiny import layered, regression, same, weights_of
from zolit import ZerothOrder, methods
from zolit.optim.buffers import CPU_CHUNK
from zolit.optim.probing import arithmetic

HALF = [torch.bfloat16, torch.float16]
MeZO = partial(methods.MeZO, probing="in_place")
CurvZO = partial(methods.CurvZO, probing="in_place")


@pytest.mark.parametrize("method", [MeZO, CurvZO], ids=["mezo", "curvzo"])
@pytest.mark.parametrize("dtype", HALF)
def test_16_bit_weights_are_restored_to_the_bit(dtype: torch.dtype, method: Callable[..., ZerothOrder]) -> None:
    model = layered(dtype)
    before = weights_of(model)
    optimizer = method(model, lr=0.0, eps=1e-3)
    closure = regression(model)
    for _ in range(200):
        optimizer.step(closure)
    assert same(weights_of(model), before)


def test_float32_weights_are_restored_to_rounding() -> None:
    """As the docstring of ``InPlace`` says: about 1e-8 after a hundred steps, for weights of 0.02."""
    model = layered()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.04)
    before = weights_of(model)
    optimizer = MeZO(model, lr=0.0, eps=1e-3)
    closure = regression(model)
    for _ in range(100):
        optimizer.step(closure)
    drift = torch.cat([(value - before[name]).view(-1) for name, value in weights_of(model).items()])
    assert 0.0 < float(drift.square().mean().sqrt()) < 2e-8
    assert float(drift.abs().max()) < 1e-7


def test_many_directions_are_restored_to_rounding() -> None:
    model = layered(torch.float64)
    before = weights_of(model)
    MeZO(model, lr=0.0, eps=1e-3, directions=4).step(regression(model))
    assert all(torch.allclose(weights_of(model)[name], value, rtol=0, atol=1e-15) for name, value in before.items())


@pytest.mark.parametrize("method", [MeZO, CurvZO], ids=["mezo", "curvzo"])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize("call", [1, 2])
def test_weights_are_restored_when_the_closure_raises(
    call: int, dtype: torch.dtype, method: Callable[..., ZerothOrder]
) -> None:
    model = layered(dtype)
    closure = regression(model)
    optimizer = method(model, lr=1e-2, momentum=0.9)
    optimizer.step(closure)
    before, state = weights_of(model), optimizer.state_dict()["zo"]
    steps, velocity = state["steps"], {k: v.clone() for k, v in state["update"]["velocities"].items()}
    report, calls = optimizer.last_step, 0

    def broken() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return closure()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(broken)
    after = weights_of(model)
    if dtype == torch.float32:
        assert all(torch.allclose(after[name], value, rtol=1e-6, atol=1e-7) for name, value in before.items())
    else:
        assert same(after, before)
    state = optimizer.state_dict()["zo"]
    assert state["steps"] == steps == 1
    assert optimizer.last_step is report
    assert all(torch.equal(state["update"]["velocities"][name], value) for name, value in velocity.items())
    optimizer.step(closure)
    assert optimizer.last_step.step == 1


def test_queries_are_at_plus_and_minus_eps() -> None:
    """The closure sees θ + εu and then θ - εu, with the same u."""
    model = layered(torch.float64)
    origin, seen = weights_of(model), []
    closure = regression(model)

    def spy() -> torch.Tensor:
        seen.append(weights_of(model))
        return closure()

    MeZO(model, lr=0.0, eps=0.25).step(spy)
    up, down = seen
    for name, theta in origin.items():
        u = (up[name] - theta) / 0.25
        assert torch.allclose(down[name], theta - 0.25 * u, atol=1e-14)
        assert float(u.abs().min()) > 0.0


@pytest.mark.parametrize("directions", [1, 3])
def test_closure_is_called_twice_a_direction_without_grad(directions: int) -> None:
    model = layered()
    closure, modes = regression(model), []

    def spy() -> torch.Tensor:
        losses = closure()
        modes.append((torch.is_grad_enabled(), losses.requires_grad))
        return losses

    optimizer = MeZO(model, lr=1e-6, directions=directions)
    optimizer.step(spy)
    assert modes == [(False, False)] * (2 * directions)
    assert optimizer.last_step.forward_passes == len(optimizer.last_step.losses) == 2 * directions
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", [MeZO, CurvZO], ids=["mezo", "curvzo"])
def test_scalar_and_per_example_losses_are_the_same(method: Callable[..., ZerothOrder]) -> None:
    runs = []
    for reduce in (lambda losses: losses, lambda losses: losses.mean()):
        model = layered()
        closure = regression(model)
        optimizer = method(model, lr=1e-2)
        losses = [optimizer.step(lambda: reduce(closure())) for _ in range(5)]  # noqa: B023  # within this round
        runs.append((losses, weights_of(model)))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])


def test_float64_losses_keep_their_precision() -> None:
    """With ε = 1e-6, a float32 loss has no digit of the derivative, and a float64 loss has four."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    model = nn.Module()
    model.register_parameter("w", weight)
    optimizer = MeZO(model, lr=1.0, eps=1e-6)
    optimizer.step(lambda: 100.0 + 1e-3 * weight.sum())
    (projected,) = optimizer.last_step.coefficients
    assert -float(weight.detach()) == pytest.approx(projected**2 / 1e-3, rel=1e-4)
    assert projected != 0.0


# --- autocast --------------------------------------------------------------------------------------------------------


def wide_linear() -> tuple[nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(16, 4)
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 16, generator=generator))
    return model, torch.randn(8, 16, generator=generator)


def losses_under_autocast() -> tuple[float, ...]:
    model, inputs = wide_linear()
    optimizer = MeZO(model, lr=0.0, eps=0.1)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
        optimizer.step(lambda: model(inputs).float().square().mean(1))
    return optimizer.last_step.losses


def test_autocast_cache_does_not_hide_that_the_weights_moved() -> None:
    first, second = losses_under_autocast()
    assert first != second


def test_the_autocast_cache_must_be_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the cache is cleared, the second forward reuses the bfloat16 weights of the first."""
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: None)
    first, second = losses_under_autocast()
    assert first == second


def test_autocast_cache_is_clean_after_a_step() -> None:
    """A forward after a step in the same autocast region computes with θ, not with the last probe's weights."""
    model, inputs = wide_linear()
    optimizer = MeZO(model, lr=0.0, eps=0.1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
        before = model(inputs).clone()
        optimizer.step(lambda: model(inputs).float().square().mean(1))
        assert torch.equal(model(inputs), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_an_interrupted_move_is_undone(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, call: int) -> None:
    """Ctrl-C arrives between two pieces of one weight: each piece is restored from the point that it has reached."""
    model = nn.Linear(1, CPU_CHUNK + 10, bias=False).to(dtype)
    before = model.weight.detach().clone()
    optimizer = MeZO(model, lr=1e-6, eps=1e-2)
    calls = 0

    def perturb(*args: Any, real: Any = arithmetic.perturb) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(arithmetic, "perturb", perturb)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(lambda: model.weight.float().sum())
    torch.testing.assert_close(model.weight.detach(), before, rtol=0, atol=1e-6 if dtype == torch.float32 else 0)
