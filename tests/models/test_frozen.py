"""What authors froze stays frozen, and so do quantised weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.helpers.families import build
from zolit import MeZO, ZOAct
from zolit.errors import UserError
from zolit.models.loading import load_language_model
from zolit.models.tuning import Full, LoRA

SMALL = {"vocab_size": 200, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
BUILT: dict[str, Callable[[], PreTrainedModel]] = {
    "ernie-moe": lambda: build("ernie-moe"),
    "pegasus": lambda: transformers.PegasusForCausalLM(transformers.PegasusConfig(**SMALL)),
    "marian": lambda: transformers.MarianForCausalLM(transformers.MarianConfig(**SMALL, pad_token_id=0)),
}
FROZEN = {"ernie-moe": "e_score_correction_bias", "pegasus": "embed_positions", "marian": "embed_positions"}


def loaded(name: str, folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    BUILT[name]().save_pretrained(folder)
    return load_language_model(str(folder), dtype=torch.float32, attn_implementation=None, trust_remote_code=False)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", BUILT)
def test_weights_that_authors_froze(name: str, tmp_path: Path) -> None:
    """The loading of transformers forgets it."""
    model = loaded(name, tmp_path)
    every = {each for each, _ in model.named_parameters()}
    frozen = {each for each in every if FROZEN[name] in each}
    assert len(frozen) == 1
    assert trained(Full().apply(model)) == every - frozen
    broad = re.compile("layers|embed_")
    assert trained(Full(broad.pattern).apply(loaded(name, tmp_path))) == set(filter(broad.search, every)) - frozen
    assert trained(Full(FROZEN[name]).apply(loaded(name, tmp_path))) == frozen
    assert all("lora" in each for each in trained(LoRA(targets=["q_proj"]).apply(loaded(name, tmp_path))))


class Packed(Tensor):
    """Looks like the quantised tensors of torchao."""

    @staticmethod
    def __new__(cls: type[Packed], values: Tensor) -> Packed:
        return torch.Tensor._make_subclass(cls, values)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "int8": lambda weight: (weight * 100).to(torch.int8),
    "uint8": lambda weight: (weight * 100).abs().to(torch.uint8),
    "float8": lambda weight: weight.to(torch.float8_e4m3fn),
    "int64": lambda weight: torch.arange(weight.numel()).view(weight.shape),
    "subclass": Packed,
}


class Scaled(nn.Module):
    """A linear layer with packed values and one scale."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = values.shape
        self.weight = nn.Parameter(values, requires_grad=values.is_floating_point())
        self.scale = nn.Parameter(torch.tensor(0.01))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.as_subclass(Tensor).float() * self.scale).T


def packed(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = build("llama")
    for layer in model.model.layers:
        layer.mlp.up_proj = Scaled(KINDS[kind](layer.mlp.up_proj.weight.detach()))
    return model


def step(model: nn.Module, method: type[MeZO] | type[ZOAct]) -> None:
    ids = torch.arange(8).view(1, 8)
    method(model, lr=1e-6).step(lambda: model(input_ids=ids, labels=ids).loss.view(1))


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_stay_frozen(kind: str) -> None:
    model = packed(kind)
    with pytest.warns(UserWarning, match=r"model.tuning: 2 of \d+ weights \(.* MiB\) .* stay frozen; .*LoRA .*ZOAct"):
        Full().apply(model)
    assert "model.layers.0.mlp.up_proj.weight" not in trained(model)
    assert "model.layers.0.mlp.up_proj.scale" in trained(model)
    assert "model.layers.0.mlp.gate_proj.weight" in trained(model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    step(model, MeZO)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value.float(), before[name].float())}
    assert moved == trained(model)
    with pytest.warns(UserWarning, match="2 of 2 weights"):
        Full("up_proj.weight").apply(model)
    with pytest.raises(UserError, match=r"no trainable parameter.* LoRA and ZOAct"):
        step(model, MeZO)
    step(model, ZOAct)


def test_8_bit_floats_in_a_loop() -> None:
    with pytest.raises(UserError, match=r"up_proj.weight has floats of 8 bits.* freeze it"):
        step(packed("float8"), MeZO)
