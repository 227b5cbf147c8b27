"""Layers before all perturbed weights are computed once a step, if this changes no loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.alike import assert_probed_alike
from tests.helpers.tiny import weights_of
from zolit import MeZO


class Stack(nn.Module):
    """A model that counts how often each layer is computed."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.counts = [0] * 4
        for index, layer in enumerate(self.layers):
            layer.forward = self._counting(index, layer.forward)

    def _counting(self, index: int, forward: Any) -> Any:
        def counted(hidden: Tensor) -> Tensor:
            self.counts[index] += 1
            return torch.tanh(forward(hidden)) + hidden

        return counted

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(self.norm(hidden))


@pytest.mark.parametrize(
    ("trainable", "counts"),
    [
        ("layers.2", [1, 1, 2, 2]),
        ("norm", [1, 1, 1, 1]),
        ("head", [1, 1, 1, 1]),
        ("layers.0", [2, 2, 2, 2]),
        ("embed", [2, 2, 2, 2]),
        ("layers.3|norm", [1, 1, 1, 2]),
    ],
)
def test_layers_before_all_perturbed_weights_run_once(trainable: str, counts: list[int]) -> None:
    runs = []
    for probing in ("streamed", "in_place"):
        torch.manual_seed(0)
        model, ids = Stack(), torch.arange(12).view(4, 3)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = any(name.startswith(part) for part in trainable.split("|"))
        optimizer = MeZO(model, lr=1e-2, eps=1e-2, probing=probing)
        parts = ids.split(2)  # two calls of the model in each closure

        def closure(model: nn.Module = model, parts: Any = parts) -> Tensor:
            return torch.cat([model(part).square().mean((1, 2)) for part in parts])

        for step in range(3):
            model.counts = [0] * 4
            optimizer.step(closure)
            # The first step traces where weights are used, the second proves that reuse is sound.
            if probing == "streamed" and step > 1:
                assert model.counts == [2 * count for count in counts]
        runs.append((optimizer.last_step.losses, weights_of(model)))
        assert all("forward" in vars(layer) for layer in model.layers)
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-6)


def test_a_tied_head_allows_no_reuse() -> None:
    model, ids = Stack(tied=True), torch.arange(12).view(4, 3)
    for parameter in model.layers.parameters():
        parameter.requires_grad = False
    optimizer = MeZO(model, lr=1e-6)
    for _ in range(2):
        model.counts = [0] * 4
        optimizer.step(lambda: model(ids).square().mean())
    assert model.counts == [2] * 4


def test_outputs_are_not_reused_for_other_inputs() -> None:
    """The closure's second call of the model depends on the first: each probe continues with its own token."""
    runs = []
    for probing in ("streamed", "in_place"):
        torch.manual_seed(0)
        model = Stack()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("head")
        optimizer = MeZO(model, lr=0.0, eps=3.0, probing=probing)

        def closure(model: nn.Module = model) -> Tensor:
            token = model(torch.tensor([[1, 2]]))[:, -1].argmax(-1, keepdim=True)
            return model(token).square().mean()

        for _ in range(4):
            optimizer.step(closure)
        runs.append(optimizer.last_step.losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)


def test_layers_with_an_operation_between_them_all_run() -> None:
    class Scaled(Stack):
        def forward(self, ids: Tensor) -> Tensor:
            hidden = self.embed(ids)
            for layer in self.layers:
                hidden = layer(hidden) * 0.9
            return self.head(self.norm(hidden))

    model, ids = Scaled(), torch.arange(12).view(4, 3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("head")
    optimizer = MeZO(model, lr=1e-6)
    for _ in range(2):
        model.counts = [0] * 4
        optimizer.step(lambda: model(ids).square().mean())
    assert model.counts == [2, 2, 2, 2]


def test_an_output_that_is_modified_in_place_is_computed_again() -> None:
    class Modifying(Stack):
        def forward(self, ids: Tensor) -> Tensor:
            hidden = self.embed(ids)
            for layer in self.layers:
                hidden = layer(hidden).mul_(1.5)
            return self.head(self.norm(hidden))

    runs = []
    for probing in ("streamed", "in_place"):
        torch.manual_seed(0)
        model, ids = Modifying(), torch.arange(12).view(4, 3)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith(("layers.2", "layers.3"))
        optimizer = MeZO(model, lr=0.0, eps=1e-1, probing=probing)
        for _ in range(2):
            optimizer.step(lambda: model(ids).square().mean())  # noqa: B023  # called within this iteration
        runs.append(optimizer.last_step.losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)


class Layers(nn.Module):
    """Four layers that a given function runs."""

    def __init__(self, run: Callable[..., Tensor], shared: str = "") -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)]
        if shared == "inner":
            for layer in layers:
                layer[0] = layers[0][0]
        if shared == "layer":
            layers = [layers[0]] * 4
        self.layers, self.run = nn.ModuleList(layers), run

    def forward(self, inputs: Tensor) -> Tensor:
        return self.run(self.layers, inputs)


def plainly(layers: nn.ModuleList, hidden: Tensor) -> Tensor:
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def all_outputs(layers: nn.ModuleList, hidden: Tensor) -> Tensor:
    outputs = []
    for layer in layers:
        hidden = layer(hidden)
        outputs.append(hidden)
    return torch.stack(outputs).sum(0)


@pytest.mark.parametrize("shared", ["inner", "layer"])
def test_layers_that_share_weights_allow_no_reuse(shared: str) -> None:
    assert_probed_alike(lambda: Layers(plainly, shared), torch.randn(5, 6, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:probing. the layers before all:UserWarning")
def test_layers_whose_outputs_are_used_elsewhere_are_not_reused() -> None:
    inputs = torch.randn(5, 6, dtype=torch.float64)
    assert_probed_alike(lambda: Layers(all_outputs), inputs, trainable="layers.3")
    assert_probed_alike(lambda: Layers(plainly), inputs, trainable="layers.3")


@pytest.mark.parametrize("objective", ["likelihood", "generated"])
def test_layers_that_fill_a_cache_are_computed(objective: str) -> None:
    """A reused layer would not add the keys of later tokens to the cache."""
    runs = []
    for probing in ("streamed", "in_place"):
        torch.manual_seed(0)
        sizes = {"vocab_size": 23, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=4, intermediate_size=24)).eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("model.layers.3")
        ids = torch.arange(12).view(2, 6) % 23

        def closure(model: LlamaForCausalLM = model, ids: Tensor = ids) -> Tensor:
            if objective == "generated":
                tokens = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
                return (tokens[:, 6:] * torch.arange(1, 6)).float().sum(1)
            first = model(ids[:, :3], use_cache=True)
            rest = model(ids[:, 3:], cache=first.past_key_values)
            return torch.cat([first.logits, rest.logits], dim=1).square().mean((1, 2))

        optimizer = MeZO(model, lr=1e-2, eps=1.0, probing=probing)
        losses = [optimizer.step(closure) for _ in range(3)]
        runs.append((losses, optimizer.last_step.coefficients))
    (losses, coefficients), (others, of_others) = runs
    assert losses == pytest.approx(others, rel=1e-4)
    assert coefficients == pytest.approx(of_others, rel=1e-3)
