"""Direct feedback on losses without a gradient: steps, their forwards, and runs that are resumed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.families import build
from tests.helpers.feedback import TEXTS, cosine, found
from tests.helpers.tiny import same, weights_of
from zolit import DirectFeedback
from zolit.models.tuning import LoRA

WORDS = torch.tensor([11, 12])
LABELS = torch.arange(len(TEXTS)) % 2


def chosen(model: nn.Module) -> Tensor:
    return model(input_ids=TEXTS, use_cache=False, logits_to_keep=1).logits[:, -1, WORDS].float()


def errors(model: nn.Module) -> Callable[[], Tensor]:
    """One where the wrong word of two is likelier, else 0."""
    return lambda: (chosen(model).argmax(1) != LABELS).to(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_vanish(dtype: torch.dtype) -> None:
    """Probes of the head are no forwards; every tenth step makes a second one. The loss is that of the first."""
    model = build("llama").to(dtype)
    optimizer = DirectFeedback(model, lr=3e-3, calibration=2)
    first = float(errors(model)().mean())
    assert optimizer.step(errors(model)) == first >= 0.4
    forwards = []
    for _ in range(30):
        optimizer.step(errors(model))
        forwards.append(optimizer.last_step.forward_passes)
    assert forwards == [2 if index % 10 == 0 else 1 for index in range(1, 31)]
    assert float(errors(model)().mean()) == 0.0


def test_layers_run_once_in_a_step() -> None:
    model, calls = build("llama"), [0]
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: calls.append(1))
    optimizer = DirectFeedback(model, calibration=0)
    optimizer.step(errors(model))
    calls.clear()
    optimizer.step(errors(model))
    assert len(calls) == 1
    assert optimizer.update.scratch_bytes() == optimizer.update._rule.scratch_bytes()
    assert not optimizer.update._stream._ends  # the hidden states are freed


def test_gradients_of_writers_are_those_of_a_loss_with_a_gradient() -> None:
    """The same losses, once with their gradient and once without."""
    model = build("llama")

    def losses() -> Tensor:
        return functional.cross_entropy(chosen(model), LABELS, reduction="none")

    exact, _ = found(model, losses, calibration=0)
    own, _ = found(model, lambda: losses().detach(), calibration=0, head_probes=1024)
    assert own.keys() == exact.keys()
    assert all(cosine(own[name], value) > 0.9 for name, value in exact.items())


def test_a_resumed_run_draws_the_same_moves() -> None:
    ends = []
    for resumed in (False, True):
        model = LoRA(rank=2, targets=["down_proj", "o_proj"]).apply(build("llama"))
        optimizer = DirectFeedback(model, lr=1e-2, calibration=2)
        for step in range(4):
            if resumed and step == 2:
                state = optimizer.state_dict()
                optimizer = DirectFeedback(model, lr=1e-2, calibration=2)
                optimizer.load_state_dict(state)
            optimizer.step(errors(model))
        ends.append(weights_of(model))
    assert same(*ends)


def test_a_loss_that_is_not_finite_skips_the_step() -> None:
    model = build("llama")
    before = weights_of(model)
    optimizer = DirectFeedback(model, calibration=0)
    with pytest.warns(RuntimeWarning, match="not all finite"):
        optimizer.step(lambda: errors(model)() * torch.nan)
    assert optimizer.last_step.skipped
    assert same(before, weights_of(model))
