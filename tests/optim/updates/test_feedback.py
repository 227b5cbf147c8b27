"""The gradients of direct feedback: exact where it says so, close where it is an approximation."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.families import build
from tests.helpers.feedback import Recorded, close, cosine, found, text_loss, true, word_loss
from zolit import DirectFeedback
from zolit.models.tuning import LoRA
from zolit.quickstart import MODEL, TRAIN


class LinearLayer(nn.Module):
    """h ↦ h + W V h, or with the second factor only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.out(self.into(hidden))


class LinearNetwork(nn.Module):
    """A residual network whose layers are linear."""

    def __init__(self, width: int = 5, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList([LinearLayer(width) for _ in range(layers)])
        self.head = nn.Linear(width, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(torch.tanh(hidden))


def linear_case() -> tuple[LinearNetwork, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model, inputs = LinearNetwork(), torch.randn(40, 7, 5)
    return model, lambda: functional.cross_entropy(model(inputs)[:, -2:].flatten(0, 1), torch.arange(80) % 3)


def test_linear_layers_with_exact_jacobians_give_the_true_gradient() -> None:
    model, closure = linear_case()
    optimizer = DirectFeedback(model, layers=4, calibration=1)
    recorded = optimizer.update._rule = Recorded()
    exact = {f"layers.{i}": (layer.out.weight @ layer.into.weight).detach() for i, layer in enumerate(model.layers)}
    optimizer.update._jacobians.load(exact)
    optimizer.step(closure)
    expected = true(model, closure)
    # The first factor feeds the second one without an activation between them.
    kinds = ("out.weight", "out.bias", "into.weight")
    assert set(recorded.gradients) == {f"layers.{i}.{kind}" for i in range(4) for kind in kinds}
    assert all(close(own, expected[name]) for name, own in recorded.gradients.items())


def test_learned_jacobians_of_linear_layers_are_nearly_exact() -> None:
    model, closure = linear_case()
    learned, _ = found(model, closure, layers=4, calibration=20)
    identity, _ = found(model, closure, layers=4, calibration=0)
    expected = true(model, closure)
    name = "layers.0.out.weight"
    assert cosine(learned[name], expected[name]) > 0.99 > cosine(identity[name], expected[name])


@pytest.mark.parametrize("loss", [word_loss, text_loss])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma3", "bloom", "mamba", "opt, projected"])
def test_the_last_writer_has_the_true_gradient(name: str, loss: Callable[[nn.Module], Callable[[], Tensor]]) -> None:
    """Plain, transposed, flattened, and behind norms; with the bias."""
    model = build(name)
    gradients, optimizer = found(model, loss(model), layers=1)
    expected = true(model, loss(model))
    last = [w.module for w in optimizer.update._writers][-1]
    own = {key: value for key, value in gradients.items() if key.startswith(last)}
    assert own
    assert all(close(value, expected[key]) for key, value in own.items())
    assert optimizer.last_step.total_backward_passes == 0


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_the_head_are_exact(tied: bool) -> None:
    """A tied head gets its own part, without the part of the embedding."""
    model = build("llama", tied=tied)
    gradients, _ = found(model, text_loss(model), layers=1, calibration=0, head=True)
    twin = build("llama", tied=False)
    twin.load_state_dict(model.state_dict())
    expected = true(twin, text_loss(twin))
    assert close(gradients["model.norm.weight"], expected["model.norm.weight"])
    assert close(gradients["model.embed_tokens.weight" if tied else "lm_head.weight"], expected["lm_head.weight"])
    assert not [name for name in gradients if name.startswith("model.layers.0")]
    assert tied or "model.embed_tokens.weight" not in gradients


def test_adapters_get_the_true_gradient() -> None:
    """The last adapter of LoRA: both factors, with their scale."""
    tuned = LoRA(rank=2, targets=["down_proj", "o_proj"]).apply(build("llama"))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    gradients, _ = found(tuned, word_loss(tuned), layers=1)
    expected = true(tuned, word_loss(tuned))
    last = {name: own for name, own in gradients.items() if "layers.1.mlp" in name}
    assert len(last) == 2
    assert all(close(own, expected[name]) for name, own in last.items())
    assert len(gradients) == 4


def quickstart() -> tuple[nn.Module, Callable[[], Tensor]]:
    """The trained model of the quickstart, on sentences of its language."""
    model = AutoModelForCausalLM.from_pretrained(MODEL).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
    lines = [json.loads(line)["sentence"] for line in TRAIN.read_text(encoding="utf-8").splitlines()[:32]]
    batch = tokenizer(lines, return_tensors="pt", padding=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]

    def closure() -> Tensor:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        kept = mask[:, :-1].flatten() * mask[:, 1:].flatten()
        return (losses * kept).sum() / kept.sum()

    return model, closure


@pytest.mark.parametrize("calibration", [0, 32])
def test_cosines_with_the_true_gradient_of_a_trained_model(calibration: int) -> None:
    """In a model of three layers, learned Jacobians are no better than the identity; in one of thirty they are."""
    model, closure = quickstart()
    own, _ = found(model, closure, layers=3, calibration=calibration)
    expected = true(model, closure)
    for part, least in (("self_attn.o_proj", (0.5, 0.7, 0.85)), ("mlp.down_proj", (0.7, 0.9, 0.999))):
        for layer in range(3):
            name = f"model.layers.{layer}.{part}.weight"
            assert cosine(own[name], expected[name]) > least[layer]
