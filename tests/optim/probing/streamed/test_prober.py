"""Compares probing that never writes the weights with in-place probing and with weights that are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import layered, regression, same, seen_by, weights_of
from tests.helpers.zoo import LAWS, zoo
from zolit import CurvZO, MeZO, ZerothOrder
from zolit.optim.perturbation.base import Perturbation
from zolit.optim.probing.streamed.prober import Streamed
from zolit.optim.probing.streamed.weight import PerturbedWeight


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("directions", [1, 3])
def test_losses_are_those_of_weights_that_are_moved(law: Callable[[], Perturbation], directions: int) -> None:
    """In float64 they differ by rounding alone, for every way to read a weight, tied weights and buffers included."""
    runs = []
    for probing in ("streamed", "in_place"):
        model, closure = zoo(torch.float64)
        optimizer = MeZO(model, lr=1e-3, eps=1e-2, directions=directions, perturbation=law(), probing=probing)
        for _ in range(3):
            optimizer.step(closure)
        runs.append(optimizer.last_step.losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-12)
    assert len(set(runs[0])) == 2 * directions


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_losses_in_low_precision(dtype: torch.dtype, tolerance: float) -> None:
    runs = []
    for probing in ("streamed", "in_place"):
        model, closure = zoo(dtype)
        optimizer = CurvZO(model, lr=1e-6, eps=1e-2, probing=probing)
        optimizer.step(closure)
        runs.append(optimizer.last_step.losses)
    assert runs[0] == pytest.approx(runs[1], rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_is_seen_as_if_it_were_moved(dtype: torch.dtype) -> None:
    """Modules compute with the weights that in-place probing writes: to the bit in 16 bits, else up to rounding."""
    seen = []
    for probing in ("streamed", "in_place"):
        model, closure = zoo(dtype)
        optimizer = MeZO(model, lr=1e-6, eps=1e-2, probing=probing)

        def spy(model: nn.Module = model, closure: Callable[[], Tensor] = closure) -> Tensor:
            seen.append(seen_by(model))
            return closure()

        optimizer.step(spy)
    for streamed, moved in zip(seen[:2], seen[2:], strict=True):
        for name, value in streamed.items():
            torch.testing.assert_close(value, moved[name], rtol=1e-6 if dtype == torch.float32 else 0, atol=1e-7)


@pytest.mark.parametrize("method", [MeZO, CurvZO, partial(CurvZO, blocks="parameter"), partial(MeZO, probing="joint")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_thousand_probes_leave_every_bit(dtype: torch.dtype, method: Callable[..., ZerothOrder]) -> None:
    model = layered(dtype)
    before = weights_of(model)
    optimizer = method(model, lr=0.0, eps=1e-3)
    closure = regression(model)
    joint = getattr(method, "keywords", {}).get("probing") == "joint"
    if joint:
        inputs, targets = torch.randn(4, 4).to(dtype), torch.randn(4).to(dtype)

        def closure() -> Tensor:
            c = optimizer.batch_repeats
            return (model(inputs.repeat(c, 1)).float() - targets.repeat(c)).square()

    for _ in range(500):
        optimizer.step(closure, repeats_batch=joint)
    assert same(weights_of(model), before)


def test_parameters_and_state_are_theta_during_a_probe() -> None:
    """Parameters, ``state_dict`` and references from before the step are θ during a probe."""
    model, closure = zoo()
    before = weights_of(model)
    held = list(model.parameters())
    calls = 0

    def spy() -> Tensor:
        nonlocal calls
        if calls > 0:  # in the first probe θ reads as NaN
            assert same(weights_of(model), before)
            state = model.state_dict()
            assert all(torch.equal(state[name], value) for name, value in before.items())
            assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
            assert not same(seen_by(model), before)
        calls += 1
        return closure()

    optimizer = MeZO(model, lr=0.0, eps=1e-2)
    for _ in range(3):
        optimizer.step(spy)
    assert calls == 6
    assert same(seen_by(model), before)
    assert not any(isinstance(value, PerturbedWeight) for module in model.modules() for value in vars(module).values())


@pytest.mark.parametrize("call", [1, 2, 3])
def test_weights_are_restored_in_modules_when_the_closure_raises(call: int) -> None:
    model, closure = zoo()
    before, calls = weights_of(model), 0

    def broken() -> Tensor:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise KeyboardInterrupt
        return closure()

    optimizer = MeZO(model, lr=1e-3)
    if call == 3:
        optimizer.step(broken)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(broken)
    assert not any(isinstance(value, PerturbedWeight) for module in model.modules() for value in vars(module).values())
    if call < 3:
        assert same(seen_by(model), before)


def test_an_error_of_the_closure_does_not_end_streaming() -> None:
    model, _ = zoo()
    optimizer = MeZO(model, lr=1e-6)

    def broken() -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(broken)
    with pytest.warns(RuntimeWarning, match="not all finite"):
        optimizer.step(lambda: torch.tensor(math.nan))
    assert isinstance(optimizer.prober, Streamed)
    assert optimizer.prober._fallback is None


def test_weights_outside_of_the_sample_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layered()
    optimizer = CurvZO(model, lr=1e-6, budget=0.3)
    made: list[str] = []
    real = PerturbedWeight.of

    def of(weight: Any, probe: Any) -> PerturbedWeight:
        made.append(weight.name)
        return real(weight, probe)

    monkeypatch.setattr(PerturbedWeight, "of", staticmethod(of))
    for _ in range(10):
        made.clear()
        optimizer.step(regression(model))
        report = optimizer.last_step.selection
        assert made == [name for name, chosen in zip(report.names, report.chosen.tolist(), strict=True) if chosen]
    assert len(made) < len(report.names)


def test_a_skipped_step_leaves_every_bit() -> None:
    model = nn.Linear(50, 50)
    before = weights_of(model)
    optimizer = MeZO(model, lr=1e-3)
    with pytest.warns(RuntimeWarning, match="not all finite"):
        optimizer.step(lambda: model(torch.ones(2, 50)).sum() * math.inf)
    assert same(weights_of(model), before)
