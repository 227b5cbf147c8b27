"""Forwards with noise recover the Jacobians of linear layers, whatever padding, outliers and first tokens hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zolit.optim.base_point import BasePoint, NotFinite
from zolit.optim.collectives import Collectives
from zolit.optim.feedback.jacobians import Jacobians
from zolit.optim.feedback.stream import ResidualStream
from zolit.optim.randomness import Step

WIDTH, LAYERS = 6, 3


class LinearBlock(nn.Module):
    """h ↦ h + A h, and something else for the tokens that must not count."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden: Tensor, bad: Tensor, size: float) -> Tensor:
        return hidden + torch.where(bad[..., None], -size * self.part(hidden), self.part(hidden))


class LinearStream(nn.Module):
    """Layers of which the Jacobians are known."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([LinearBlock() for _ in range(LAYERS)])
        self.head = nn.Linear(WIDTH, 1)

    def forward(
        self, inputs: Tensor, attention_mask: Tensor | None = None, bad: Tensor | None = None, size: float = 1.0
    ) -> Tensor:
        hidden = inputs
        for layer in self.layers:
            hidden = layer(hidden, torch.zeros(inputs.shape[:-1], dtype=torch.bool) if bad is None else bad, size)
        return self.head(hidden)[..., 0]


def stream(dtype: torch.dtype = torch.float32) -> LinearStream:
    torch.manual_seed(0)
    model = LinearStream()
    with torch.no_grad():
        for layer in model.layers:
            layer.part.weight.copy_(torch.randn(WIDTH, WIDTH) * 0.3)
    return model.to(dtype)


def learned(
    model: nn.Module, closure: Callable[[], Tensor], forwards: int = 40, collectives: Collectives | None = None
) -> tuple[dict[str, Tensor], BasePoint]:
    jacobians = Jacobians(ResidualStream(model).layers, forwards)
    base = BasePoint(model, closure, collectives or Collectives(), Step(0, 0), 0.0)
    with torch.no_grad():
        with jacobians.watching(model, Step(0, 0)):
            closure()
        jacobians.learn(base)
    jacobians.keep(Collectives())
    return jacobians.learned, base


def close(found: dict[str, Tensor], model: LinearStream, tolerance: float = 0.05) -> bool:
    pairs = zip(found.values(), model.layers, strict=True)
    return all(float((a - m.part.weight.detach()).norm() / m.part.weight.detach().norm()) < tolerance for a, m in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_layers_are_recovered(dtype: torch.dtype) -> None:
    model = stream(dtype)
    inputs = torch.randn(16, 8, WIDTH).to(dtype)
    found, base = learned(model, lambda: model(inputs).float().square().mean())
    assert close(found, model)
    assert all(jacobian.dtype == dtype for jacobian in found.values())
    assert len(base.losses) == 40


def test_rows_without_tokens() -> None:
    model = stream()
    inputs = torch.randn(128, WIDTH)
    assert close(learned(model, lambda: model(inputs).square().mean())[0], model)


def padded() -> tuple[Tensor, Tensor, Tensor]:
    """Returns inputs, a mask with padding on the left of every second row, and which tokens count."""
    inputs, mask = torch.randn(16, 12, WIDTH), torch.ones(16, 12, dtype=torch.int64)
    mask[::2, :5] = 0
    counts = torch.ones(16, 12, dtype=torch.bool)
    counts[::2, :6] = counts[1::2, 0] = False  # padding, and the first token of each text
    return inputs, mask, counts


def test_padding_and_first_tokens_do_not_count() -> None:
    """Their Jacobian is another one. A single column of other tokens with this Jacobian spoils the result."""
    model, (inputs, mask, counts) = stream(), padded()
    assert close(learned(model, lambda: model(inputs, mask, ~counts).square().mean())[0], model)
    counts[:, 7] = False
    assert not close(learned(model, lambda: model(inputs, mask, ~counts).square().mean())[0], model)


def test_tokens_that_react_too_much_do_not_count() -> None:
    model, (inputs, mask, _) = stream(), padded()
    bad = torch.zeros(16, 12, dtype=torch.bool)
    bad[::4, 7] = True
    assert close(learned(model, lambda: model(inputs, mask, bad, 60.0).square().mean())[0], model)


def test_micro_batches_add_up() -> None:
    model = stream()
    inputs = torch.randn(16, 8, WIDTH)
    parts = inputs.split(4)
    assert close(learned(model, lambda: torch.stack([model(part).square().mean() for part in parts]))[0], model)


def test_ranks_share_their_equations() -> None:
    """With an all_mean that returns the sums of another rank, the Jacobians are those of this rank."""

    class Other(Collectives):
        size = 2

        def __init__(self) -> None:
            self.shared: list[torch.Size] = []

        def all_mean(self, own: Tensor) -> Tensor:
            self.shared.append(own.shape)
            return own

    model, other = stream(), Other()
    inputs = torch.randn(16, 8, WIDTH)
    learned(model, lambda: model(inputs).square().mean(), 2, other)
    assert other.shared.count(torch.Size([WIDTH, WIDTH])) == 2 * LAYERS


def test_without_equations_the_layers_are_the_identity() -> None:
    model = stream()
    inputs = torch.randn(3, 1, WIDTH)  # first tokens alone
    found, _ = learned(model, lambda: model(inputs).square().mean(), 2)
    assert not any(jacobian.any() for jacobian in found.values())


def test_nothing_is_kept_of_a_step_that_is_skipped() -> None:
    model = stream()
    inputs = torch.randn(16, 8, WIDTH)
    jacobians = Jacobians(ResidualStream(model).layers, 2)
    with torch.no_grad():
        with jacobians.watching(model, Step(0, 0)):
            model(inputs)
        with pytest.raises(NotFinite):
            jacobians.learn(BasePoint(model, lambda: model(inputs).mean() * torch.nan, Collectives(), Step(0, 0), 0.0))
    jacobians.forget()
    jacobians.keep(Collectives())
    assert jacobians.is_due(Step(0, 1))
    delta = torch.randn(4, WIDTH)
    assert torch.equal(jacobians.pulled_back("layers.1", delta), delta)
