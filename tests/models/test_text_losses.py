"""Losses of texts equal those of transformers, row by row, and logits are computed a few positions at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.families import CAUSAL, build
from tests.helpers.padded import language
from tests.helpers.texts import TEXTS, naive_losses, text_batch, text_losses
from zolit import AGZO, FirstOrder, MeZO, PerExample, ZerothOrder
from zolit.errors import UserError
from zolit.models.language_model import LanguageModel
from zolit.models.tuning import Full, LoRA, PrefixTuning, Tuning
from zolit.optim.modules.calls import ModelCalls
from zolit.tasks.text import Text
from zolit.training.objective import Objective
from zolit.training.row_check import RowCheck

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about kernels that are not installed
TUNINGS: dict[str, Callable[[], Tuning]] = {"all": Full, "lora": lambda: LoRA(2), "prefix": lambda: PrefixTuning(3)}


def head_calls(model: LanguageModel, run: Callable[[], object]) -> list[tuple[int, ...]]:
    """Returns the shape of the head's input in each of its calls."""
    base = model.model.get_base_model() if hasattr(model.model, "get_base_model") else model.model
    seen: list[tuple[int, ...]] = []
    hook = base.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    run()
    hook.remove()
    return seen


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_losses_are_those_of_transformers(name: str) -> None:
    """Also of models that ignore the mask, since padding comes last."""
    lm = LanguageModel(build(name), Full())
    losses = text_losses(lm, text_batch())
    expected = naive_losses(build(name))
    torch.testing.assert_close(losses(), expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(lm.text_losses(text_batch(more=4)), expected, atol=2e-5, rtol=2e-5)
    assert expected.std() > 0
    shapes = head_calls(lm, losses)
    assert sum(shape[-2] for shape in shapes) == max(map(len, TEXTS)) - 1
    assert max(shape[-2] for shape in shapes) * len(TEXTS) <= max(shape[-1] for shape in shapes) / 2


def capped(name: str) -> Any:
    """Returns a model whose head does much more than a product."""
    model: Any = build(name)
    if name.startswith("gemma"):
        model.config.final_logit_softcapping = 0.7
    elif name == "cohere":
        model.logit_scale = 3.0
    elif name == "granite-hybrid":
        model.logits_scaling = model.config.logits_scaling = 0.2
    elif name == "falcon-h1":
        model.lm_head_multiplier = model.model.lm_head_multiplier = 3.0
    return model


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "cohere", "granite-hybrid", "phi", "falcon-h1"])
@torch.no_grad()
def test_caps_scales_and_biases_of_a_head_count(name: str) -> None:
    lm = LanguageModel(capped(name), Full())
    losses = text_losses(lm, text_batch())
    assert len(head_calls(lm, losses)) > 1
    torch.testing.assert_close(losses(), naive_losses(capped(name)), atol=2e-5, rtol=2e-5)
    if name != "phi":  # its head has a bias
        assert (losses() - naive_losses(build(name))).abs().max() > 1e-2


class Mixing(LlamaForCausalLM):
    """A model whose head looks at other positions, too."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        labels = kwargs.pop("labels", None)
        found = super().forward(input_ids, **kwargs)
        found.logits = found.logits.cumsum(1)
        if labels is not None:
            found.loss = nn.functional.cross_entropy(found.logits[0, :-1], labels[0, 1:])
        return found


class Bodiless(LlamaForCausalLM):
    """A model that does not say which module is its body."""

    base_model_prefix = ""

    def get_decoder(self) -> nn.Module:
        raise NotImplementedError


@pytest.mark.parametrize("kind", [Mixing, Bodiless])
@torch.no_grad()
def test_a_head_that_needs_all_positions_gets_them(kind: type[LlamaForCausalLM]) -> None:
    config = LlamaConfig(
        vocab_size=23, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24
    )
    torch.manual_seed(0)
    model: Any = kind(config).eval()
    lm = LanguageModel(model, Full())
    with pytest.warns(UserWarning, match=f"the logits of {kind.__name__} cannot be computed in pieces"):
        losses = text_losses(lm, text_batch())
    torch.testing.assert_close(losses(), naive_losses(model), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tuning", TUNINGS)
@torch.no_grad()
def test_tunings(tuning: str, tied: bool) -> None:
    """The rows alone, with whole logits, give the same losses."""
    whole, lm = (language(TUNINGS[tuning](), tied=tied) for _ in range(2))
    losses = text_losses(lm, text_batch())
    assert len(head_calls(lm, losses)) > 1
    expected = torch.cat([whole.text_losses(text_batch([row])) for row in TEXTS])
    torch.testing.assert_close(losses(), expected, atol=1e-6, rtol=1e-6)
    if tuning == "all":
        torch.testing.assert_close(expected, naive_losses(whole.model).float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("probing", ["streamed", "joint", "in_place"])
def test_probes_measure_what_whole_logits_give(tuning: str, tied: bool, probing: str) -> None:
    found = []
    for in_pieces in (True, False):
        lm = language(TUNINGS[tuning](), tied=tied)
        batch = text_batch()
        if in_pieces:
            lm.prepare_texts(batch)
        optimizer = MeZO(
            lm.model, lr=0.0, eps=1e-2, probing="streamed" if probing == "joint" and not in_pieces else probing
        )
        losses = []
        for _ in range(3):
            optimizer.step(lambda: lm.text_losses(batch.repeated(optimizer.batch_repeats)), repeats_batch=True)  # noqa: B023
            losses += optimizer.last_step.losses
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert len(set(found[0])) == 6


@torch.no_grad()
def test_weights_of_16_bits() -> None:
    lm = language(dtype=torch.bfloat16)
    losses = text_losses(lm, text_batch())
    torch.testing.assert_close(losses(), naive_losses(lm.model).float(), atol=2e-2, rtol=0)
    assert losses().dtype == torch.float32


@pytest.mark.parametrize("guided", [True, False])
def test_directions_of_examples_see_the_whole_head(guided: bool) -> None:
    """Directions in the span of activations need those of all tokens; micro-batches and padding change nothing."""
    found = []
    for more, size in ((0, 3), (0, 1), (5, 3)):
        lm = language()
        lm.keeps_logits_whole = True
        batch = text_batch(more=more)
        lm.prepare_texts(batch)
        optimizer = PerExample(lm.model, lr=0.0, guided=guided)
        parts = list(batch.split(size)) if size == 1 else [batch]
        shapes = head_calls(
            lm,
            lambda: optimizer.step(  # noqa: B023
                lambda: torch.cat([lm.text_losses(part) for part in parts]),  # noqa: B023
                examples=range(3),
            ),
        )
        assert {shape[1] for shape in shapes} == {part.input_ids.shape[1] - 1 for part in parts}
        found.append(torch.tensor(optimizer.last_step.coefficients))
    assert found[0].abs().min() > 0
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=2e-3, atol=2e-4)


def test_what_looks_at_activations_leaves_padding_out() -> None:
    """A subspace of the head comes from the first piece, whose mask is that of its columns."""
    found = []
    for more in (0, 1, 9):
        lm = language()
        batch = text_batch(more=more)
        lm.prepare_texts(batch)
        optimizer: ZerothOrder = AGZO(lm.model, lr=0.0, iterations=20)
        optimizer.step(lambda: lm.text_losses(batch))  # noqa: B023
        found.append([basis @ basis.t() for basis in optimizer.perturbation._bases.values()])
    assert found[0]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=2e-3, atol=2e-4)


def test_a_model_in_which_padding_counts_is_refused() -> None:
    """Every token of this model sees the mean of its row, padding included."""
    lm, objective, batch = language(), Objective("task", Text(), None), text_batch()
    losses = text_losses(lm, batch)
    RowCheck(True)(batch, losses, objective, lm)
    model: Any = lm.model
    model.get_input_embeddings().register_forward_hook(lambda _, __, out: out + out.mean(1, keepdim=True))
    with pytest.raises(UserError, match=r"gives an example the loss .* so that it does not ignore padding"):
        RowCheck(True)(batch, losses, objective, lm)


@pytest.mark.parametrize("tuning", TUNINGS)
@torch.no_grad()
def test_each_piece_has_its_columns_of_the_mask(tuning: str) -> None:
    """The last token of a text predicts nothing, and is hidden like padding."""
    lm = language(TUNINGS[tuning]())
    batch, found = text_batch(more=2), list[Tensor | None]()
    losses, calls = text_losses(lm, batch), ModelCalls(lm.model)
    base: Any = lm.model if tuning == "all" else lm.model.get_base_model()  # type: ignore[operator]  # a model of peft
    base.get_output_embeddings().register_forward_pre_hook(lambda _, args: found.append(calls.kept(args[0])))
    with calls.followed():
        losses()
    assert len(found) > 1
    assert torch.equal(
        torch.cat([kept for kept in found if kept is not None], dim=1), batch.attention_mask[:, 1:].bool()
    )


def test_gradients_are_exact_and_logits_are_not_kept() -> None:
    rows = [list(range(1 + index, 60 + index)) for index in range(4)]
    gradients, kept = {}, {}
    for in_pieces in (True, False):
        lm = LanguageModel(build("llama"), Full())
        batch = text_batch(rows)
        if in_pieces:
            lm.prepare_texts(batch)
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel() * (tensor.shape[-1:] == (1000,)))  # noqa: B023  # logits
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = lm.text_losses(batch).mean()
        gradients[in_pieces] = torch.autograd.grad(loss, list(lm.model.parameters()))
        kept[in_pieces] = sum(sizes)
    torch.testing.assert_close(gradients[True], gradients[False], atol=1e-6, rtol=1e-4)
    plain = build("llama")
    expected = torch.autograd.grad(naive_losses(plain, rows).mean(), list(plain.parameters()))
    torch.testing.assert_close(gradients[True], expected, atol=1e-6, rtol=1e-4)
    assert 0 < kept[True] < kept[False] / 10


def test_a_method_with_a_backward_pass_trains() -> None:
    lm = language(dtype=torch.float32)
    batch = text_batch()
    lm.prepare_texts(batch)
    optimizer = FirstOrder(lm.model, lr=1e-2)
    losses = [optimizer.step(lambda: lm.text_losses(batch)) for _ in range(5)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi", "falcon-h1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_frozen_head_computes_its_logits_once(name: str, dtype: torch.dtype, in_parts: bool) -> None:
    """The gradients by hidden states are kept, of the right size for each token, and not the logits."""
    rows, gradients = [list(range(1 + index, 40 + index)) for index in range(4)], {}
    for in_pieces in (True, False):
        lm = LanguageModel(capped(name).to(dtype), Full())
        body, head = lm.model.base_model, lm.model.get_output_embeddings()  # type: ignore[operator]  # of transformers
        head.requires_grad_(False)
        batch = text_batch(rows)
        if in_pieces:
            lm.prepare_texts(batch)
        trained = [weight for weight in body.parameters() if weight.requires_grad]

        def differentiate(lm: LanguageModel = lm, trained: list[nn.Parameter] = trained) -> None:
            with torch.enable_grad():
                parts = list(batch.split(2)) if in_parts else [batch]  # noqa: B023  # each is computed twice
                losses = torch.cat(Objective("task", Text(), None).losses_of_parts(lm, parts))
                loss = (losses * torch.arange(1.0, 5.0)).sum()
            gradients[in_pieces] = torch.cat([g.flatten().float() for g in torch.autograd.grad(loss, trained)])  # noqa: B023

        shapes = head_calls(lm, differentiate)
        assert sum(shape[-2] for shape in shapes) == (4 if in_parts else 1) * (len(rows[0]) - 1)
        assert (len(shapes) > 4) is in_pieces
    error = (gradients[True] - gradients[False]).norm() / gradients[False].norm()
    assert error < (1e-5 if dtype == torch.float32 else 0.02)
