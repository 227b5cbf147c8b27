"""Autocast in the closure or around the step changes the model's forwards, and nothing that stages compute."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.battery import METHODS, made, model_for
from tests.helpers.stage_calls import CastCalls
from tests.helpers.tiny import layered, regression
from zolit.optim.perturbation import directions
from zolit.optim.perturbation.gaussian_pool import GaussianPool


@pytest.mark.parametrize("place", ["in the closure", "around the step"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:step. eps. .* is rounded away")  # the tiny model has large weights
def test_no_stage_calls_what_autocast_sends_to_16_bits_on_a_gpu(name: str, place: str) -> None:
    model = model_for(name)
    optimizer, losses = made(name, model), regression(model)
    inside = place == "in the closure"

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if inside else nullcontext():
            return losses()

    with CastCalls() as calls, nullcontext() if inside else torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            optimizer.step(closure)
    assert not calls.found


@pytest.mark.parametrize(("multiply", "shape"), [(torch.mm, (1, 1)), (torch.mv, (1,))])
def test_such_a_call_is_seen(
    monkeypatch: pytest.MonkeyPatch, multiply: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    """A CPU casts mm, but not mv; and draws of MeZO multiply nothing."""
    draw = GaussianPool.draw

    def multiplied(law: GaussianPool, *args: Any) -> tuple[Tensor, float]:
        z, sign = draw(law, *args)
        multiply(torch.ones(1, 1), torch.ones(shape))
        return z, sign

    code = multiplied.__code__.replace(co_filename="/zolit/optim/perturbation/law.py")
    multiplied.__code__ = code
    monkeypatch.setattr(GaussianPool, "draw", multiplied)
    monkeypatch.setattr(directions, "without_autocast", lambda _: nullcontext())
    model = layered()
    optimizer, losses = made("mezo", model), regression(model)
    with CastCalls() as calls, torch.autocast("cpu", torch.bfloat16):
        optimizer.step(losses)
    assert {found.split(":")[0] for found in calls.found} == {"perturbation/law.py"}
