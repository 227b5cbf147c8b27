"""Compares weights that are perturbed layer by layer, as on a GPU, with views that perturb at each use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny import layered, regression, same, seen_by, weights_of
from zolit import CurvZO, MeZO, MeZOGreedy, ZerothOrder
from zolit.optim.blocks import trainable_weights
from zolit.optim.buffers import CPU_CHUNK
from zolit.optim.perturbation.gaussian import Gaussian
from zolit.optim.probing.streamed import layerwise
from zolit.optim.probing.streamed.weight import PerturbedWeight
from zolit.optim.probing.views import find_sites

METHODS: list[tuple[Callable[..., ZerothOrder], dict[str, Any]]] = [
    (MeZO, {}),
    (MeZO, {"directions": 3}),
    (MeZO, {"perturbation": Gaussian()}),
    (MeZOGreedy, {}),
    (CurvZO, {}),
    (CurvZO, {"blocks": "parameter"}),
]


@pytest.fixture
def layerwise_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Sets whether weights are perturbed layer by layer, as on a GPU."""
    return lambda on: monkeypatch.setattr(layerwise, "pays", lambda device: on)


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_runs_are_the_same_to_the_bit(
    layerwise_on: Callable[[bool], None],
    method: Callable[..., ZerothOrder],
    options: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    runs, losses = [], []
    for on in (False, True):
        layerwise_on(on)
        model = layered(dtype)
        optimizer, closure = method(model, lr=1e-3, **options), regression(model)
        for _ in range(5):
            optimizer.step(closure)
        runs.append(weights_of(model))
        losses.append(optimizer.last_step.losses)
    assert same(*runs)
    assert losses[0] == losses[1]


def test_layers_find_plain_tensors_and_code_outside_of_them_finds_views(layerwise_on: Callable[[bool], None]) -> None:
    layerwise_on(True)
    model = layered()
    optimizer, closure = MeZO(model, lr=1e-6), regression(model)
    inside: list[type] = []
    outside: list[type] = []
    function = torch.nn.functional.linear

    class Layer(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            inside.append(type(self.weight))
            return function(inputs, self.weight, self.bias)

    for layer in model.layers:
        layer.__class__ = Layer

    def recorded() -> Tensor:
        outside.append(type(model.layers[0].weight))
        return closure()

    before = seen_by(model)
    optimizer.step(recorded)
    assert inside == [Tensor] * 4
    assert outside == [PerturbedWeight] * 2
    assert not same(seen_by(model), before)
    assert all("weight" not in vars(module) for module in model.modules())


def test_weights_are_restored_when_a_layer_raises(layerwise_on: Callable[[bool], None]) -> None:
    layerwise_on(True)
    model = layered()
    optimizer, closure = MeZO(model, lr=1e-6), regression(model)
    optimizer.step(closure)
    before = weights_of(model)

    def fail(*_: Any) -> None:
        raise KeyError("from within")

    handle = model.layers[1].register_forward_hook(fail)
    with pytest.raises(KeyError, match="from within"):
        optimizer.step(closure)
    handle.remove()
    assert same(weights_of(model), before)
    assert same(seen_by(model), before)
    assert not model.layers[0]._forward_pre_hooks
    optimizer.step(closure)


class Holder(nn.Linear):
    """A layer that computes with a reference from its constructor."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.held = [self.weight]

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.held[0], self.bias)


def test_a_layer_that_bypasses_attributes_is_detected(layerwise_on: Callable[[bool], None]) -> None:
    layerwise_on(True)
    model = layered()
    model.layers[1] = Holder()
    optimizer, closure = MeZO(model, lr=1e-6), regression(model)
    with pytest.warns(UserWarning, match="elsewhere than in its modules' attributes"):
        optimizer.step(closure)
    assert optimizer.last_step.losses[0] != optimizer.last_step.losses[1]


class Shared(nn.Module):
    """Two layers that share a matrix, and a third layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.layers[1].weight = self.layers[0].weight
        self.wide = nn.Linear(8, 16)

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = torch.tanh(layer(inputs))
        return self.wide(inputs).square().mean(1)


def stepped(make: Callable[[], nn.Module], width: int) -> tuple[nn.Module, MeZO]:
    """Returns a model and its optimizer after four steps."""
    torch.manual_seed(0)
    model, inputs = make(), torch.randn(4, width)
    optimizer = MeZO(model, lr=1e-3)
    for _ in range(4):
        optimizer.step(lambda: model(inputs))
    return model, optimizer


def test_weights_of_two_layers_keep_their_views(layerwise_on: Callable[[bool], None]) -> None:
    runs = []
    for on in (False, True):
        layerwise_on(on)
        model, _ = stepped(Shared, 8)
        runs.append(weights_of(model))
    assert same(*runs)


class Wide(nn.Module):
    """A layer whose matrix is drawn in several pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1024, 1024), nn.Linear(1024, 4)])

    def forward(self, inputs: Tensor) -> Tensor:
        first, second = self.layers
        return second(torch.tanh(first(inputs))).square().mean(1)


def test_matrices_of_many_pieces(layerwise_on: Callable[[bool], None]) -> None:
    losses = []
    for on in (False, True):
        layerwise_on(on)
        model, optimizer = stepped(Wide, 1024)
        assert model.layers[0].weight.numel() > CPU_CHUNK
        losses.append(optimizer.last_step.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_weights_of_layers_with_much_of_the_model_keep_their_views(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layered()
    sites = find_sites(model, trainable_weights(model))
    assert len(layerwise.LayerwiseWeights(model, sites)._layers) == 2
    monkeypatch.setattr(layerwise, "_SMALL", 0)
    assert not layerwise.LayerwiseWeights(model, sites)._layers  # a third of the weights each
