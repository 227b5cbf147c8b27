"""Compares per-example probing with single examples at weights that are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.directions import directions_of, moved_along
from zolit import PerExample
from zolit.errors import UserError
from zolit.optim.perturbation.directions import Directions

LAWS: list[dict[str, Any]] = [{"guided": False}, {"guided": False, "rank": 2}, {"guided": True}]
MODELS = ["linear", "lookup", "layer_norm", "rms_norm", "llama", "opt", "roberta", "lora"]


class Rows(nn.Module):
    """A model with embeddings, a positional table, a norm and linear layers over a few tokens."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.places = nn.Embedding(5, 6)
        self.norm: nn.Module = nn.LayerNorm(6) if kind == "layer_norm" else nn.RMSNorm(6)
        self.up = nn.Linear(6, 9)
        self.head = nn.Linear(9, 1, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids) + self.places(torch.arange(ids.shape[1])[None])
        return self.head(torch.tanh(self.up(self.norm(hidden)))).mean((1, 2))


def language_model(kind: str) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, LlamaConfig, OPTConfig, RobertaConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 23}
    if kind == "opt":
        config = OPTConfig(ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32, **sizes)
        return AutoModelForCausalLM.from_config(config)
    if kind == "roberta":
        return AutoModelForMaskedLM.from_config(
            RobertaConfig(intermediate_size=24, max_position_embeddings=32, **sizes)
        )
    config = LlamaConfig(intermediate_size=24, num_key_value_heads=2, tie_word_embeddings=kind == "llama", **sizes)
    model = AutoModelForCausalLM.from_config(config)
    if kind == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    return model


def made(kind: str) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """Returns a model in evaluation mode, and its losses on ids of shape (batch, tokens) with a mask."""
    torch.manual_seed(0)
    if kind in ("linear", "lookup", "layer_norm", "rms_norm"):
        rows = Rows(kind).double().eval()
        return rows, lambda ids, mask: (rows(ids % 11) - 1.0).square()
    model = language_model(kind).double().eval()

    def losses(ids: Tensor, mask: Tensor) -> Tensor:
        logits = model(input_ids=ids, attention_mask=mask).logits[torch.arange(len(ids)), mask.argmax(1) + 2]
        return nn.functional.cross_entropy(logits, ids[:, 0] % 7, reduction="none")

    return model, losses


IDS = torch.arange(20).view(4, 5) * 7 % 23
FULL = torch.ones_like(IDS)


def one_by_one(directions: Directions, losses: Callable[[Tensor, Tensor], Tensor], c: float, rows: int = 1) -> Tensor:
    """Returns the loss of each single example at weights that are written; for several rows, the product of losses."""
    found = []
    for index in range(0, len(IDS), rows):
        with moved_along(directions, index, c):
            found.append(losses(IDS[index : index + rows], FULL[index : index + rows]).prod())
    return torch.stack(found)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("options", LAWS, ids=["plain", "rank 2", "guided"])
@pytest.mark.parametrize("kind", MODELS)
def test_equals_each_example_by_itself(kind: str, options: dict[str, Any]) -> None:
    model, losses = made(kind)
    optimizer = PerExample(model, lr=0.0, eps=1e-2, **options)
    directions = directions_of(optimizer, 0)
    queries = torch.tensor([[0.1], [-0.1]], dtype=torch.float64)
    with torch.no_grad():
        found = optimizer.prober.losses(lambda: losses(IDS, FULL), directions, queries)
        expected = torch.stack([one_by_one(directions, losses, c) for c in (0.1, -0.1)])
    assert float((found[0] - found[1]).abs().min()) > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", LAWS, ids=["plain", "rank 2", "guided"])
def test_rows_of_one_id_are_one_example(options: dict[str, Any]) -> None:
    model, losses = made("llama")
    optimizer = PerExample(model, lr=0.0, eps=1e-2, **options)
    directions = directions_of(optimizer, 0, [5, 5, 6, 6])
    queries = torch.tensor([[0.1], [-0.1]], dtype=torch.float64)

    def of_rows() -> Tensor:
        return losses(IDS, FULL).view(2, 2).prod(1)[[0, 0, 1, 1]]

    with torch.no_grad():
        found = optimizer.prober.losses(of_rows, directions, queries)
        for weight in directions.weights:
            start, stop = directions.chunks(weight)[0]
            first = directions.draw(0, weight, start, stop)[0].clone()
            assert torch.equal(directions.draw(1, weight, start, stop)[0], first), weight.name
        expected = torch.stack([one_by_one(directions, losses, c, rows=2) for c in (0.1, -0.1)])
    torch.testing.assert_close(found, expected.repeat_interleave(2, dim=1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("guided", [False, True])
def test_padding_order_and_micro_batches_change_nothing(guided: bool) -> None:
    model, losses = made("llama")

    def probed(batches: list[tuple[Tensor, Tensor]], ids: list[int]) -> dict[int, float]:
        optimizer = PerExample(model, lr=0.0, eps=1e-3, guided=guided)
        optimizer.step(lambda: torch.cat([losses(*batch) for batch in batches]), examples=ids)
        return dict(zip(ids, optimizer.last_step.coefficients, strict=True))

    expected = probed([(IDS, FULL)], [5, 6, 7, 8])
    order = [2, 0, 3, 1]
    assert probed([(IDS[order], FULL[order])], [7, 5, 8, 6]) == pytest.approx(expected, rel=1e-6)
    assert probed([(IDS[:3], FULL[:3]), (IDS[3:], FULL[3:])], [5, 6, 7, 8]) == pytest.approx(expected, rel=1e-6)
    ids = nn.functional.pad(IDS, (3, 0))
    mask = nn.functional.pad(FULL, (3, 0))
    places = (mask.cumsum(1) - 1).clamp(min=0)

    def padded() -> Tensor:
        logits = model(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, 5]
        return nn.functional.cross_entropy(logits, IDS[:, 0] % 7, reduction="none")

    optimizer = PerExample(model, lr=0.0, eps=1e-3, guided=guided)
    optimizer.step(padded, examples=[5, 6, 7, 8])
    assert optimizer.last_step.coefficients == pytest.approx(tuple(expected.values()), rel=1e-6)


@pytest.mark.parametrize("options", LAWS, ids=["plain", "rank 2", "guided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_move_along_what_was_measured(options: dict[str, Any], dtype: torch.dtype) -> None:
    model, losses = made("llama")
    model = model.to(dtype)
    optimizer = PerExample(model, lr=0.3, eps=1e-3 if dtype == torch.float32 else 0.1, **options)
    before = {weight: weight.flat.clone() for block in optimizer.blocks for weight in block.weights}
    with torch.no_grad():
        optimizer.step(lambda: losses(IDS, FULL).float())
    directions = directions_of(optimizer, 0, range(len(IDS)), begin=False)  # with the activations of the step
    for weight, theta in before.items():
        expected = torch.zeros(theta.numel())
        for index, coefficient in enumerate(optimizer.last_step.coefficients):
            for start, stop in directions.chunks(weight):
                u, factor = directions.draw(index, weight, start, stop)
                expected[start:stop].add_(u, alpha=-0.3 * coefficient * factor)
        moved = (weight.flat.double() - theta.double()).float()
        cosine = float(nn.functional.cosine_similarity(moved, expected, dim=0))
        assert cosine > (0.9999 if dtype == torch.float32 else 0.8), (weight.name, cosine)


class Flattens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.transpose(0, 1).reshape(-1, 6)  # token after token, not example after example
        return self.layer(rows).view(-1, len(inputs)).mean(0)


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.flatten(0, 1)[1:]).mean() + inputs.sum((1, 2))


class Mixes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.layer(inputs).mean((1, 2))
        return (out - out.mean()).square()


class Elsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)
        self.held = [self.layer.weight]

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs @ self.held[0].T).mean((1, 2))


class Convolves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(4, 1, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).mean((1, 2))


class Repeats(nn.Module):
    """Looks up rows once, and repeats them for all examples, as prompt tuning does."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(3, 6)
        self.layer = nn.Linear(6, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = self.rows(torch.arange(3)[None]).repeat(len(inputs), 1, 1)
        return self.layer(torch.cat([rows, inputs], dim=1)).mean((1, 2))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Repeats, "the model raises RuntimeError where a weight differs from example to example"),
        (Flattens, "an example's loss depends on the directions of others"),
        (Drops, "layer.weight meets activations of shape .19, 6. in linear, not 5 examples"),
        (Mixes, "an example's loss depends on the directions of others"),
        (Elsewhere, "elsewhere than in its modules' attributes"),
        (Convolves, "layer.weight is used in conv1d"),
    ],
)
def test_models_that_mix_examples_are_refused(kind: Callable[[], nn.Module], message: str) -> None:
    model = kind()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = PerExample(model, lr=1.0)
    inputs = torch.randn(5, 4, 6)
    with pytest.raises(UserError, match=message) as caught:
        optimizer.step(lambda: model(inputs))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_mixture_of_experts_is_refused() -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, vocab_size=23,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    optimizer = PerExample(model, lr=1.0)
    with pytest.raises(UserError, match="take another method"):
        optimizer.step(lambda: model(input_ids=IDS).logits[:, -1, 0])


def test_an_exception_of_the_closure_is_its_own() -> None:
    model = nn.Linear(3, 1)

    def broken() -> Tensor:
        model(torch.ones(5, 3))
        raise KeyError("label")

    with pytest.raises(KeyError, match="label"):
        PerExample(model, lr=4e-5).step(broken)


def test_a_mean_loss_is_refused() -> None:
    model = nn.Linear(3, 1)
    optimizer = PerExample(model, lr=4e-5)
    with pytest.raises(UserError, match=r"must return the loss of each example, shape \(5,\)"):
        optimizer.step(lambda: model(torch.ones(5, 3)).mean())


def test_a_loss_that_is_not_finite_is_no_reason_to_refuse_the_model() -> None:
    model = nn.Linear(3, 1)
    optimizer = PerExample(model, lr=1e-2)
    with pytest.warns(RuntimeWarning, match="not all finite"):
        optimizer.step(lambda: model(torch.full((5, 3), torch.nan))[:, 0])
    optimizer.step(lambda: torch.square(model(torch.ones(5, 3))[:, 0] - 1.0))
    assert not optimizer.last_step.skipped
