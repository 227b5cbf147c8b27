"""Direct feedback against autograd: exact where it says so, close where it is an approximation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.families import build
from tests.helpers.tiny import same, weights_of
from zolit import DirectFeedback, UserError
from zolit.models.tuning import LoRA
from zolit.optim.blocks import Weight
from zolit.optim.randomness import Step
from zolit.optim.updates.adam import Adam
from zolit.quickstart import MODEL, TRAIN

Gradients = dict[str, Tensor]


class Recorded(Adam):
    """An Adam that records gradients, and moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: Gradients = {}

    def move(self, weight: Weight, gradient: Tensor, start: int, stop: int, lr: float, step: Step) -> None:
        whole = self.gradients.setdefault(weight.name, torch.zeros(weight.parameter.numel()))
        whole[start:stop] = gradient


def found(model: nn.Module, closure: Callable[[], Tensor], steps: int = 1, **options: Any) -> tuple[Gradients, Any]:
    """Returns the gradients of direct feedback in the last of some steps, and the optimizer."""
    optimizer = DirectFeedback(model, **options)
    recorded = optimizer.update._adam = Recorded()
    for _ in range(steps):
        recorded.gradients = {}
        optimizer.step(closure)
    return recorded.gradients, optimizer


def true(model: nn.Module, closure: Callable[[], Tensor]) -> Gradients:
    """Returns autograd's gradients of all weights."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(closure().float().mean(), list(named.values()), allow_unused=True)
    return {n: g.flatten().float() for n, g in zip(named, gradients, strict=True) if g is not None}


def cosine(left: Tensor, right: Tensor) -> float:
    return float(functional.cosine_similarity(left, right, 0))


def close(left: Tensor, right: Tensor, tolerance: float = 1e-4) -> bool:
    return float((left - right).norm()) < tolerance * float(right.norm())


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
    recorded = optimizer.update._adam = Recorded()
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


def test_tokens_that_the_loss_does_not_look_at_may_be_nan() -> None:
    """More columns are kept than the loss looks at. The hidden state of padding may be anything."""
    model, closure = linear_case()
    expected = true(model, closure)
    torch.manual_seed(0)
    _, inputs = LinearNetwork(), torch.randn(40, 7, 5)
    inputs[:, 3] = torch.nan
    own, _ = found(
        model,
        lambda: functional.cross_entropy(model(inputs)[:, -2:].flatten(0, 1), torch.arange(80) % 3),
        layers=1,
        calibration=0,
    )
    assert close(own["layers.3.out.weight"], expected["layers.3.out.weight"])


TEXTS = torch.arange(60).view(5, 12) * 37 % 900 + 5


def word_loss(model: nn.Module) -> Callable[[], Tensor]:
    """The loss looks at the last token of each row."""
    return lambda: functional.cross_entropy(
        model(input_ids=TEXTS, use_cache=False).logits[:, -1].float(), TEXTS[:, 0], reduction="none"
    )


def text_loss(model: nn.Module, first: int = 1) -> Callable[[], Tensor]:
    """The loss looks at all tokens from ``first`` on."""

    def closure() -> Tensor:
        logits = model(input_ids=TEXTS, use_cache=False).logits[:, first - 1 : -1].float()
        return functional.cross_entropy(logits.flatten(0, 1), TEXTS[:, first:].flatten())

    return closure


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


def test_micro_batches_give_the_same_step() -> None:
    model = build("llama")

    def parts() -> Tensor:
        losses = []
        for ids in TEXTS.split(2):
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            losses.append(functional.cross_entropy(logits, ids[:, 0], reduction="none"))
        return torch.cat(losses)

    whole, _ = found(model, word_loss(model), calibration=0)
    split, _ = found(model, parts, calibration=0)
    assert whole.keys() == split.keys()
    assert all(close(split[name], own) for name, own in whole.items())


def test_a_loss_that_looks_at_more_tokens_makes_the_forward_again() -> None:
    """Inputs are kept at the tokens that mattered so far; a loss that looks further back costs one forward more."""
    model = build("llama")
    far, optimizer = None, DirectFeedback(model, layers=1, calibration=0, lr=0.0)
    recorded = optimizer.update._adam = Recorded()
    forwards = []
    for first in (12, 11, 10, 10, 3, 1):  # how many tokens from the end: 1, 2, 3, 3, 10, 12
        optimizer.step(text_loss(model, first) if first < 12 else word_loss(model))
        forwards.append(optimizer.last_step.forward_passes)
        far = text_loss(model, first) if first < 12 else word_loss(model)
        expected = true(model, far)
        name = "model.layers.1.mlp.down_proj.weight"
        assert close(recorded.gradients[name], expected[name])
    assert forwards == [2, 2, 1, 1, 2, 1]


def test_a_resumed_run_knows_the_tokens_of_the_loss() -> None:
    """Neither writers nor Jacobians are looked for again, and no forward is made twice."""
    runs = []
    for resumed in (False, True):
        model = build("llama")
        optimizer = DirectFeedback(model, calibration=2, lr=1e-3)
        for _ in range(2):
            optimizer.step(text_loss(model))
        if resumed:
            state = optimizer.state_dict()
            optimizer = DirectFeedback(model, calibration=2, lr=1e-3)
            optimizer.load_state_dict(state)
        optimizer.step(text_loss(model))
        runs.append((weights_of(model), optimizer.last_step))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1].losses == runs[1][1].losses
    assert runs[0][1].total_forward_passes == runs[1][1].total_forward_passes == 5 + 1 + 1


def test_a_first_step_that_is_skipped_is_made_again() -> None:
    """Whatever of its forwards is not finite: nothing is learned, and the next step learns it."""
    for bad in (1, 2, 4):
        model, calls = build("llama"), 0

        def closure(model: nn.Module = model, bad: int = bad) -> Tensor:
            nonlocal calls
            calls += 1
            return word_loss(model)() * (torch.nan if calls == bad else 1.0)

        optimizer = DirectFeedback(model, calibration=3)
        with pytest.warns(RuntimeWarning, match="not all finite"):
            optimizer.step(closure)
        state = optimizer.update.state_dict()
        assert (state["jacobians"], state["writers"], optimizer.last_step.skipped) == ({}, None, True)
        assert optimizer.update.scratch_bytes() == 0
        optimizer.step(closure)
        assert optimizer.last_step.forward_passes == 5
        assert set(optimizer.update.state_dict()["jacobians"]) == {"model.layers.1"}


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_language_model_learns_from_forwards_alone(dtype: torch.dtype) -> None:
    """The first step takes 4 + 2 forwards, others one. Weights of 16 bits move by less than their spacing."""
    model = build("llama").to(dtype)
    optimizer = DirectFeedback(model, lr=1e-3, calibration=4)
    before, weights = float(text_loss(model)().detach()), weights_of(model)
    forwards = []
    for _ in range(30):
        optimizer.step(text_loss(model))
        forwards.append(optimizer.last_step.forward_passes)
    assert forwards[0] == 4 + 3  # the loss looks at all tokens
    assert set(forwards[1:]) == {1}
    assert float(text_loss(model)().detach()) < 0.9 * before
    moved = {name for name, value in weights_of(model).items() if not torch.equal(value, weights[name])}
    assert moved == {f"model.layers.{i}.{w}.weight" for i in (0, 1) for w in ("self_attn.o_proj", "mlp.down_proj")}


def test_autocast_changes_the_forwards_alone() -> None:
    model = build("llama")

    def mixed() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return word_loss(model)()

    exact, _ = found(model, word_loss(model), layers=1)
    own, optimizer = found(model, mixed, layers=1)
    assert len(optimizer.update._writers) == 2
    assert all(cosine(own[name], value) > 0.99 for name, value in exact.items())
    assert all(value.dtype == torch.float32 for value in own.values())


def test_frozen_weights_stay() -> None:
    model = build("gpt2")
    frozen = [name for name, _ in model.named_parameters() if "h.1.mlp" in name or name.endswith("attn.c_proj.bias")]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    before = weights_of(model)
    DirectFeedback(model, calibration=0, head=True).step(word_loss(model))
    after = weights_of(model)
    assert same({name: after[name] for name in frozen}, {name: before[name] for name in frozen})
    assert not torch.equal(after["transformer.h.1.attn.c_proj.weight"], before["transformer.h.1.attn.c_proj.weight"])


def scores(model: nn.Module) -> Callable[[], Tensor]:
    """A loss without a gradient."""

    def closure() -> Tensor:
        wrong = model(input_ids=TEXTS, use_cache=False).logits[:, -1].argmax(1) != TEXTS[:, 0]
        return wrong.float()

    return closure


REFUSED: list[tuple[str, Callable[[nn.Module], object]]] = [
    ("layers: at least 1 layer", lambda model: DirectFeedback(model, layers=0)),
    ("layers: the model has 2 layers", lambda model: DirectFeedback(model, layers=3)),
    ("calibration: the number of forwards", lambda model: DirectFeedback(model, calibration=-1)),
    ("a loss with a gradient by the last hidden state", lambda model: DirectFeedback(model).step(scores(model))),
    (
        "no trainable matrix in the last 2 layers",
        lambda model: DirectFeedback(LoRA(rank=2).apply(model)).step(word_loss(model)),
    ),
]


@pytest.mark.parametrize(("sentence", "call"), REFUSED, ids=[sentence for sentence, _ in REFUSED])
def test_refusals(sentence: str, call: Callable[[nn.Module], object]) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        call(build("llama"))
    assert "\n" not in str(caught.value)


def test_gradients_stay_off_after_a_step() -> None:
    """Also within a step that fails; hooks are removed."""
    model = build("llama")
    optimizer = DirectFeedback(model)
    with torch.no_grad(), pytest.raises(UserError):
        optimizer.step(scores(model))
    assert torch.is_grad_enabled()
    seen: list[bool] = []
    select = optimizer.selection.select
    optimizer.selection.select = lambda step: (seen.append(torch.is_grad_enabled()), select(step))[1]  # type: ignore[method-assign]
    optimizer.step(word_loss(model))
    assert seen == [False]
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
