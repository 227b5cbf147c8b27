"""Probes of the head alone estimate the gradient at the last hidden state, also of a loss that has none."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.families import build
from tests.helpers.feedback import TEXTS, cosine
from zolit import UserError
from zolit.optim.base_point import BasePoint, TailLoss
from zolit.optim.collectives import Collectives
from zolit.optim.feedback.head import HeadProbes
from zolit.optim.feedback.stream import ResidualStream
from zolit.optim.randomness import Step

Closure = Callable[[], Tensor]


def made(model: nn.Module, closure: Closure) -> tuple[ResidualStream, BasePoint, TailLoss]:
    stream = ResidualStream(model)
    base = BasePoint(model, closure, Collectives(), Step(0, 0), 0.0)
    with torch.no_grad():
        return stream, base, base.tail_loss(stream.tail(), [])


def probed(model: nn.Module, closure: Closure, pairs: int) -> list[Tensor]:
    stream, base, loss = made(model, closure)
    with torch.no_grad():
        return HeadProbes(stream, pairs).deltas(base, loss)


def exact(model: nn.Module, closure: Closure) -> list[Tensor]:
    _, base, loss = made(model, closure)
    with torch.no_grad():
        return base.tail_gradients(loss, [], 1, lambda _: pytest.fail("the loss has a gradient")).deltas


def word_losses(model: nn.Module, parts: int = 1, columns: int = 1) -> Closure:
    """Returns the loss of each row, which looks at the last column; logits are made for some."""

    def losses(ids: Tensor) -> Tensor:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=columns).logits
        return functional.cross_entropy(logits[:, -1].float(), ids[:, 0], reduction="none")

    return lambda: torch.cat([losses(ids) for ids in TEXTS.tensor_split(parts)])


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma3", "bloom", "mamba", "opt, projected"])
def test_the_estimate_is_that_of_autograd(name: str, parts: int) -> None:
    """Smoothing shrinks the gradient a little. A micro-batch is a call of its own."""
    model = build(name)
    own, true = (
        torch.cat(found)
        for found in (probed(model, word_losses(model, parts), 256), exact(model, word_losses(model, parts)))
    )
    assert own.shape == true.shape
    assert cosine(own.flatten(), true.flatten()) > 0.9
    assert float(own.norm() / true.norm()) == pytest.approx(1.0, abs=0.2)
    assert own[:, -1].any(-1).all()
    assert not own[:, :-1].any()  # no logits are made there


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_with_logits_are_probed(dtype: torch.dtype) -> None:
    """Those that the loss does not look at have an expectation of 0."""
    model = build("llama").to(dtype)
    (own,), (true,) = probed(model, word_losses(model, 1, 3), 1024), exact(model, word_losses(model, 1, 3))
    assert own[:, -3:].any(-1).all()
    assert not own[:, :-3].any()
    assert cosine(own[:, -1].flatten(), true[:, -1].flatten()) > 0.95
    assert float(own[:, -3:-1].norm()) < 0.5 * float(true.norm())


class Keep(nn.Module):
    """A layer that passes on a half of its input, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return hidden * self.scale


class Linear(nn.Module):
    """Layers, and a linear classifier of two classes."""

    def __init__(self, width: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Keep() for _ in range(layers)])
        self.head = nn.Linear(width, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


def linear_case(layers: int = 2) -> tuple[Linear, Tensor, Closure]:
    torch.manual_seed(0)
    model, inputs = Linear(layers=layers), torch.randn(40, 4)
    return model, inputs, error_rate(model, inputs)


def error_rate(model: nn.Module, inputs: Tensor) -> Closure:
    def closure() -> Tensor:
        wrong = model(inputs).argmax(1) != torch.arange(len(inputs)) % 2
        return wrong.float()

    return closure


@pytest.mark.parametrize("layers", [1, 2])
def test_the_error_rate_has_the_gradient_of_its_smoothed_form(layers: int) -> None:
    """E[error] = Φ(-m / σ‖w‖), where m is the margin and w its gradient; the derivative is in closed form."""
    model, inputs, closure = linear_case(layers)
    (own,) = probed(model, closure, 4000)
    hidden = inputs * 0.5**layers
    sigma = 0.5 * float(hidden.square().mean(0).sqrt().median())
    sign = 1.0 - 2.0 * (torch.arange(40) % 2)
    w = sign[:, None] * (model.head.weight[0] - model.head.weight[1]).detach()
    margin = (hidden * w).sum(1) + sign * (model.head.bias[0] - model.head.bias[1]).detach()
    spread = sigma * w.norm(dim=1)
    density = (-0.5 * (margin / spread).square()).exp() / math.sqrt(2 * math.pi)
    expected = -(density / spread)[:, None] * w / 40
    assert float((own - expected).norm() / expected.norm()) < 0.1


def test_no_layer_runs_in_a_probe() -> None:
    model, _, closure = linear_case()
    probed(model, closure, 10)
    assert [layer.calls for layer in model.layers] == [1, 1]
    assert not [layer for layer in model.layers if "forward" in vars(layer)]


def test_a_forward_that_was_replaced_before_comes_back() -> None:
    model, _, closure = linear_case()
    replaced = [lambda hidden: hidden, lambda hidden: 2.0 * hidden]
    for layer, forward in zip(model.layers, replaced, strict=True):
        layer.forward = forward  # type: ignore[method-assign]  # as accelerate does
    probed(model, closure, 1)
    assert [vars(layer)["forward"] for layer in model.layers] == replaced


def test_a_step_decides() -> None:
    """The same step draws the same moves, another step others."""
    model, _, closure = linear_case()
    stream, base, loss = made(model, closure)
    with torch.no_grad():
        first, second = (HeadProbes(stream, 20).deltas(base, loss)[0] for _ in range(2))
        base.step = Step(0, 1)
        other = HeadProbes(stream, 20).deltas(base, loss)[0]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_losses_of_other_rows_are_refused() -> None:
    model, _, closure = linear_case()
    for loss in (lambda: closure().mean(), lambda: closure()[:10], lambda: torch.cat([closure(), closure()])[:40]):
        with pytest.raises(UserError, match=r"needs the loss of each row of the model's input, shape \(\d+,\)"):
            probed(model, loss, 1)


class Shortcut(Linear):
    """The head sees the output of the first layer too."""

    def forward(self, inputs: Tensor) -> Tensor:
        first = self.layers[0](inputs)
        return self.head(self.layers[1](first)) - 3.0 * self.head(first)


def test_a_head_that_sees_more_than_the_last_state_is_refused() -> None:
    torch.manual_seed(0)
    model, inputs = Shortcut(), torch.randn(40, 4)
    with pytest.raises(UserError, match="whose output depends on more than the last hidden state"):
        probed(model, error_rate(model, inputs), 1)


def test_a_closure_that_calls_the_model_more_often_is_refused() -> None:
    model, inputs, _ = linear_case()
    counted: list[int] = []

    def closure() -> Tensor:
        counted.append(1)
        losses = model(inputs).argmax(1).float()
        return losses if len(counted) == 1 else losses + model(inputs).argmax(1)

    with pytest.raises(UserError, match="the forwards of one batch call the model differently often"):
        probed(model, closure, 1)
