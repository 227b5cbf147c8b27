"""Models small enough for thousands of steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

DEVICE = torch.device(os.environ.get("ZOLIT_TEST_DEVICE", "cpu"))
"""The device of ``layered`` models and of runs from the command line."""


class LinearLoss(nn.Module):
    """L(θ) = Σ_b ⟨g_b, θ_b⟩, with θ = 0 at first. The gradient g is known, and central differences are exact."""

    def __init__(self, gradients: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.gradients = dict(gradients)
        for name, gradient in gradients.items():
            self.register_parameter(name, nn.Parameter(torch.zeros_like(gradient)))

    def forward(self) -> Tensor:
        return sum((self.get_parameter(name) * g).sum() for name, g in self.gradients.items())  # type: ignore[return-value]  # sum begins at 0

    @torch.no_grad()
    def get(self) -> dict[str, Tensor]:
        """Returns θ and resets it to 0."""
        moved = {name: self.get_parameter(name).clone() for name in self.gradients}
        for name in self.gradients:
            self.get_parameter(name).zero_()
        return moved


def linear_loss(sizes: list[int], seed: int = 0, dtype: torch.dtype = torch.float64) -> LinearLoss:
    """Returns a linear loss over blocks b0, b1, ... of the given sizes, with standard normal gradients."""
    generator = torch.Generator().manual_seed(seed)
    return LinearLoss({f"b{i}": torch.randn(n, generator=generator).to(dtype) for i, n in enumerate(sizes)})


class Layered(nn.Module):
    """A model with two numbered layers between an input and an output layer: each kind of block name occurs."""

    def __init__(self, order: tuple[str, ...] = ("embed", "layers", "norm", "head")) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {
            "embed": nn.Linear(4, 6),
            "layers": nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)]),
            "norm": nn.LayerNorm(6),
            "head": nn.Linear(6, 1, bias=False),
        }
        for name in order:
            self.add_module(name, parts[name])

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embed(inputs)
        for layer in self.layers:  # type: ignore[union-attr]  # a ModuleList
            hidden = hidden + torch.tanh(layer(hidden))
        answer: Tensor = self.head(self.norm(hidden))
        return answer.squeeze(-1)


class Residual(nn.Module):
    """A layer that adds the product of a matrix to its input, as the layers of language models do."""

    def __init__(self, width: int = 6, inner: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.down(torch.tanh(self.up(self.norm(hidden))))


class ResidualStream(Layered):
    """The layered model with three such layers, which pass one hidden state on."""

    def __init__(self, order: tuple[str, ...] = ("embed", "layers", "norm", "head")) -> None:
        super().__init__(order)
        self.layers = nn.ModuleList([Residual(), Residual(), Residual()])

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embed(inputs)
        for layer in self.layers:  # type: ignore[union-attr]  # a ModuleList
            hidden = layer(hidden)
        answer: Tensor = self.head(self.norm(hidden))
        return answer.squeeze(-1)


def layered(
    dtype: torch.dtype = torch.float32,
    order: tuple[str, ...] | None = None,
    seed: int = 0,
    kind: type[Layered] = Layered,
) -> Layered:
    """Returns a layered model; its weights depend on their names and the seed alone."""
    model = kind(order) if order else kind()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.to(DEVICE, dtype)


def regression(model: nn.Module, examples: int = 16, seed: int = 1) -> Callable[[], Tensor]:
    """Returns a closure: the squared error of each example, shape (examples,), against the targets of a linear map."""
    generator = torch.Generator().manual_seed(seed)
    weight = next(model.parameters())
    inputs = torch.randn(examples, 4, generator=generator)
    targets = (inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0])).to(weight)
    inputs = inputs.to(weight)

    def closure() -> Tensor:
        answers: Tensor = model(inputs)
        wide = answers.float() if answers.dtype.itemsize == 2 else answers
        return (wide - targets).square()

    return closure


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns copies of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def seen_by(model: nn.Module) -> dict[str, Tensor]:
    """Returns copies of all weights by name, as the model's modules see them: perturbed, during a probe."""
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name, _ in model.named_parameters()}
    return {name: getattr(owner, name.rpartition(".")[2]).detach().clone() for name, owner in owners.items()}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Returns whether both hold the same weights to the bit."""
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())
