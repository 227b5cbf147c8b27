"""What looks at activations leaves padding out, however the model is called and whoever looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.padded import batch, choices, language
from zolit import AGZO, DominantLayer, PerExample, ZerothOrder, ZOAct
from zolit.models.language_model import LanguageModel
from zolit.models.tuning import Full, LoRA, PrefixTuning, Tuning
from zolit.optim.modules.calls import ModelCalls

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")


def layer(optimizer: ZerothOrder) -> list[Tensor]:
    return [torch.tensor(optimizer.selection.state_dict()["layer"])]


def subspaces(optimizer: ZerothOrder) -> list[Tensor]:
    return [basis @ basis.t() for basis in optimizer.perturbation._bases.values()]


def bases(optimizer: ZerothOrder) -> list[Tensor]:
    found = [value for name, value in optimizer.model.named_buffers() if name.endswith("zo_basis")]
    return [basis.t() @ basis for basis in found]


def spans(optimizer: ZerothOrder) -> list[Tensor]:
    return [torch.tensor(optimizer.last_step.coefficients)]


LOOKING: dict[str, tuple[type[ZerothOrder], dict[str, Any], Callable[[ZerothOrder], list[Tensor]]]] = {
    "dominant layer": (DominantLayer, {"magnitude": 0.01, "ratio": 7.0}, layer),
    "agzo": (AGZO, {"iterations": 20}, subspaces),
    "agzo, rank 3": (AGZO, {"rank": 3, "iterations": 40}, subspaces),
    "zo-act": (ZOAct, {"rank": 2}, bases),
    "per example": (PerExample, {}, spans),
}
TUNINGS: dict[str, Callable[[], Tuning]] = {"all": Full, "lora": lambda: LoRA(2), "prefix": lambda: PrefixTuning(3)}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("who", "tuning"),
    # No block of a prefix lies within a layer.
    [(who, tuning) for who in LOOKING for tuning in TUNINGS if (who, tuning) != ("dominant layer", "prefix")],
)
def test_more_padding_changes_no_choice_and_no_subspace(who: str, tuning: str, tied: bool) -> None:
    method, options, seen = LOOKING[who]
    found = []
    for left, right in ((0, 0), (5, 0), (0, 4), (2, 9)):
        made = language(TUNINGS[tuning](), tied=tied)
        optimizer = method(made.model, lr=0.0, **options)
        rows = batch(left, right)
        ids = {"examples": rows.prompt_index.tolist()} if optimizer.per_example else {}
        optimizer.step(choices(made, rows), **ids)
        found.append(seen(optimizer))
    assert found[0] or tuning == "prefix"
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=2e-3, atol=2e-4)


class Wrapped(nn.Module):
    """A user's module around a language model; it passes the mask by position."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.inner(ids, attention_mask).logits
        return logits[:, -1]


@pytest.mark.parametrize("called", ["by position", "inner", "by name"])
def test_a_mask_is_found_however_the_model_is_called(called: str) -> None:
    made: LanguageModel = language()
    model, rows, found = Wrapped(made.model), batch(2), []
    calls = ModelCalls(model)
    made.model.model.layers[0].mlp.register_forward_pre_hook(lambda _, args: found.append(calls.kept(args[0])))
    with calls.followed(), torch.no_grad():
        if called == "by position":
            model(rows.prompt_ids, rows.prompt_mask)
        elif called == "by name":
            model(ids=rows.prompt_ids, attention_mask=rows.prompt_mask)
        else:
            made.model(input_ids=rows.prompt_ids, attention_mask=rows.prompt_mask)
    assert torch.equal(found[0], rows.prompt_mask.bool())
    assert not calls.running


class Recorder(nn.Module):
    """A model that looks at activations of a shape of the test."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = ModelCalls(self)

    def forward(
        self, ids: Tensor, attention_mask: Tensor | None, shape: tuple[int, ...], logits_to_keep: Tensor | int = 0
    ) -> Tensor | None:
        return self.calls.kept(torch.zeros(*shape, 7))


MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 4), MASK),
        ((8,), MASK.flatten()),
        ((2, 3), MASK[:, 1:]),  # the columns whose logits are kept
        ((2, 1), torch.ones(2, 1)),  # the first token of each row, or the last one
        ((2, 4, 5), MASK[:, :, None].expand(2, 4, 5)),  # heads after tokens
        ((2, 5, 4), MASK[:, None].expand(2, 5, 4)),  # and before them
        ((2,), None),  # pooled
        ((6,), None),  # tokens that a router has chosen
        ((3, 4), None),
        ((2, 5), None),
        ((2, 5, 6), None),
    ],
)
def test_rows_of_tokens_are_those_of_the_mask(shape: tuple[int, ...], expected: Tensor | None) -> None:
    model = Recorder()
    with model.calls.followed():
        found = model(MASK, MASK, shape)
        assert model(MASK, None, shape) is None
        assert model(MASK, torch.ones(4, 4), shape) is None  # a mask of pairs of tokens
    assert (found is None) == (expected is None)
    assert expected is None or torch.equal(found, expected.bool())


def test_columns_that_a_tensor_names_are_those_of_the_mask() -> None:
    model, columns = Recorder(), torch.tensor([0, 3])
    with model.calls.followed():
        assert torch.equal(model(MASK, MASK, (2, 2), logits_to_keep=columns), MASK[:, columns].bool())
        assert torch.equal(model(MASK, MASK, (2, 4), logits_to_keep=columns), MASK.bool())


def test_a_call_that_fails_ends_too() -> None:
    model = Recorder()
    with model.calls.followed(), pytest.raises(RuntimeError):
        model(MASK, MASK, (-1,))
    assert not model.calls.running
