"""The steps of direct feedback: their forwards, what they skip, keep, refuse and leave alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.families import build
from tests.helpers.feedback import TEXTS, Recorded, close, cosine, found, text_loss, true, word_loss
from tests.helpers.tiny import same, weights_of
from zolit import DirectFeedback, UserError
from zolit.models.tuning import LoRA
from zolit.optim import BlockSample, Step


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
    recorded = optimizer.update._rule = Recorded()
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_language_model_learns_from_forwards_alone(dtype: torch.dtype) -> None:
    """The first step takes 4 + 2 forwards, others one or two. Weights of 16 bits move by less than their spacing."""
    model = build("llama").to(dtype)
    optimizer = DirectFeedback(model, lr=1e-3, calibration=4)
    before, weights = float(text_loss(model)().detach()), weights_of(model)
    forwards = []
    for _ in range(30):
        optimizer.step(text_loss(model))
        forwards.append(optimizer.last_step.forward_passes)
    assert forwards[0] == 4 + 3  # the loss looks at all tokens
    assert forwards[1:] == [2 if index % 10 == 0 else 1 for index in range(1, 30)]
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


def mean_score(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: scores(model)().mean()


REFUSED: list[tuple[str, Callable[[nn.Module], object]]] = [
    ("layers: at least 1 layer", lambda model: DirectFeedback(model, layers=0)),
    ("layers: the model has 2 layers", lambda model: DirectFeedback(model, layers=3)),
    ("calibration: the number of forwards", lambda model: DirectFeedback(model, calibration=-1)),
    ("refresh: the number of steps", lambda model: DirectFeedback(model, refresh=-1)),
    ("head_probes: at least 1 pair", lambda model: DirectFeedback(model, head_probes=0)),
    ("needs the loss of each row", lambda model: DirectFeedback(model).step(mean_score(model))),
    ("by their exact gradients, which this loss", lambda model: DirectFeedback(model, head=True).step(scores(model))),
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
        optimizer.step(mean_score(model))
    assert torch.is_grad_enabled()
    seen: list[bool] = []
    select = optimizer.selection.select

    def watched(step: Step) -> BlockSample:
        seen.append(torch.is_grad_enabled())
        return select(step)

    optimizer.selection.select = watched  # type: ignore[method-assign]  # to see the mode within a step
    optimizer.step(word_loss(model))
    assert seen == [False]
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
