"""The first step warns, in a sentence, of what makes the difference of two losses noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import layered, regression
from zolit import FirstOrder, MeZO, PerExample, ZerothOrder
from zolit.errors import UserError


def said(optimizer: ZerothOrder, closure: Callable[[], Tensor], steps: int = 3) -> list[str]:
    """Makes steps, and returns the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            optimizer.step(closure)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def with_layer(layer: nn.Module) -> tuple[nn.Module, Callable[[], Tensor]]:
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 1))
    return model, lambda: model(inputs).square().mean(1)


class Counting(nn.Module):
    """Counts its calls in a buffer, as layers do that keep averages."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += self.training
        return inputs


class Drops(nn.Module):
    """Dropout that no module of torch does."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(inputs, 0.3, self.training)


LAYERS = [nn.Dropout(0.1), nn.BatchNorm1d(4), nn.RReLU(), Counting(), Drops()]


@pytest.mark.parametrize("probing", ["streamed", "in_place"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_a_model_in_training_mode(layer: nn.Module, probing: Any) -> None:
    model, closure = with_layer(layer)
    optimizer = MeZO(model.train(), lr=0.0, probing=probing)
    (sentence,) = said(optimizer, closure)
    assert "call model.eval()" in sentence
    assert not said(MeZO(model.eval(), lr=0.0), closure)


def test_training_mode_without_randomness_is_no_noise() -> None:
    model, closure = with_layer(nn.Dropout(0.0))
    assert not said(MeZO(model.train(), lr=1e-6), closure)


def test_a_closure_that_draws_its_batch() -> None:
    model = layered().eval()
    (sentence,) = said(MeZO(model, lr=1e-6), lambda: model(torch.randn(4, 4)).square())
    assert "outside of the closure" in sentence


def test_backpropagation_may_have_dropout() -> None:
    model, closure = with_layer(nn.Dropout(0.1))
    assert not said(FirstOrder(model.train(), lr=1e-4), closure)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loss_of_16_bits(dtype: torch.dtype) -> None:
    model = layered(dtype)
    (sentence,) = said(MeZO(model, lr=1e-6), lambda: model(torch.ones(2, 4, dtype=dtype)).square())
    assert f"a loss of {dtype}" in sentence
    assert "float32" in sentence


@pytest.mark.parametrize(
    ("dtype", "eps", "lost"),
    [
        (torch.bfloat16, 1e-3, False),
        (torch.bfloat16, 1e-4, True),
        (torch.float16, 1e-4, False),
        (torch.float32, 1e-4, False),
        (torch.float32, 1e-9, True),
        (torch.float64, 1e-9, False),
    ],
)
def test_an_eps_that_is_rounded_away(dtype: torch.dtype, eps: float, lost: bool) -> None:
    model = layered(dtype)
    sentences = said(MeZO(model, lr=0.0, eps=eps), regression(model))
    assert [sentence.startswith(f"step: eps: {eps}") for sentence in sentences] == [True] * lost


def test_autocast_rounds_too() -> None:
    model = layered()
    with torch.autocast("cpu", torch.bfloat16):
        (sentence,) = said(MeZO(model, lr=0.0, eps=1e-4), lambda: model(torch.ones(2, 4)).float().square())
    assert "autocast" in sentence


def test_directions_of_single_examples_are_not_rounded() -> None:
    model = layered(torch.bfloat16)
    assert not said(PerExample(model, lr=0.0, eps=1e-4), regression(model))


def test_no_forward_is_added() -> None:
    model = layered()
    closure, calls = regression(model), []
    MeZO(model, lr=1e-6).step(lambda: calls.append(1) or closure())
    assert len(calls) == 2


@pytest.mark.parametrize("method", [MeZO, partial(FirstOrder, lr=1e-4)])
def test_a_later_group_is_refused(method: Callable[..., ZerothOrder]) -> None:
    optimizer = method(layered())
    with pytest.raises(UserError, match="add_param_group: the weights are fixed"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert len(optimizer.param_groups) == 1
