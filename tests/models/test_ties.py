"""What two names share is trained, saved and exported as one, or refused before training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.helpers.families import GROUPED, build
from zolit import MeZO, ZOAct
from zolit.cli.export import _type_of
from zolit.errors import UserError
from zolit.models.loading import is_masked_lm, load_language_model
from zolit.models.tuning import Full, LoRA, Tuning
from zolit.optim.modules.adapters import adapted_modules, merge_coefficients

IDS = torch.arange(12).view(2, 6)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True. and a tied layer:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning"),
]


def llama(tied: bool) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**GROUPED, tie_word_embeddings=tied))


BUILT: dict[str, Callable[[], PreTrainedModel]] = {
    "tied": lambda: llama(True),
    "untied": lambda: llama(False),
    "tied, with a head in the file": lambda: llama(True),
    "bert": lambda: build("bert"),
    "albert": lambda: build("albert"),
}


def loaded(name: str, folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    BUILT[name]().save_pretrained(folder)
    if "head in the file" in name:
        file = folder / "model.safetensors"
        head = {"lm_head.weight": torch.randn(1000, 32) * 0.02}
        save_file(load_file(file) | head, file, metadata={"format": "pt"})
    return load_language_model(str(folder), dtype=torch.float32, attn_implementation=None, trust_remote_code=False)


def train(model: nn.Module, method: type[MeZO] | type[ZOAct] = MeZO) -> None:
    optimizer = method(model, lr=1e-3, eps=1e-3)
    for _ in range(3):
        optimizer.step(lambda: model(input_ids=IDS).logits.logsumexp(2).mean(1))


TUNINGS: dict[str, Callable[[], Tuning]] = {
    "full": Full,
    "lora": lambda: LoRA(targets=["q_proj", "v_proj", "query", "value"]),
}


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("name", BUILT)
def test_plain_transformers_computes_what_was_trained(name: str, tuning: str, tmp_path: Path) -> None:
    start = loaded(name, tmp_path / "model")
    with torch.no_grad():
        before = start(input_ids=IDS).logits
    model: nn.Module = TUNINGS[tuning]().apply(start)
    train(model)
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
    again = TUNINGS[tuning]().apply(loaded(name, tmp_path / "again"))
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, wanted)
    plain: Any = model
    if tuning == "lora":
        plain = plain.merge_and_unload()
    plain.save_pretrained(tmp_path / "plain")
    kind = AutoModelForMaskedLM if is_masked_lm(start.config) else AutoModelForCausalLM
    with torch.no_grad():
        torch.testing.assert_close(kind.from_pretrained(tmp_path / "plain")(input_ids=IDS).logits, wanted)
    assert not torch.equal(wanted, before)


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head", "q_proj"]])
def test_adapters_on_a_tie(targets: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.tuning.targets: .* share a weight"):
        LoRA(targets=targets).apply(loaded("tied", tmp_path))
    LoRA(targets=targets).apply(loaded("untied", tmp_path))


def test_adapters_on_one_use_of_a_module() -> None:
    model = llama(False)
    first, second = (layer.mlp for layer in model.model.layers)
    second.up_proj = first.up_proj
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.up_proj and model\.layers\.1\.mlp\.up_proj share a weight"):
        LoRA(targets=["up_proj"]).apply(model)
    model = llama(False)
    model.model.layers[1] = model.model.layers[0]  # a layer that is repeated has its adapters in both places
    assert LoRA(targets=["up_proj"]).apply(model)


@pytest.mark.parametrize("pattern", ["lm_head", "embed_tokens"])
def test_a_tied_weight_has_two_names(pattern: str) -> None:
    trained = [name for name, p in Full(pattern).apply(llama(True)).named_parameters() if p.requires_grad]
    assert trained == ["model.embed_tokens.weight"]


def test_layers_that_share_a_weight_get_no_coefficients() -> None:
    """Merged, the coefficients of each would change the other."""
    model = llama(False).eval()
    first, second = (layer.mlp for layer in model.model.layers)
    second.up_proj.weight = first.up_proj.weight
    train(model, ZOAct)
    assert not any("up_proj" in name for name in adapted_modules(model))
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
        merge_coefficients(model)
        torch.testing.assert_close(model(input_ids=IDS).logits, wanted)


def test_coefficients_of_quantised_layers_are_not_merged() -> None:
    model = llama(False)
    train(model, ZOAct)
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.data.to(torch.int8), requires_grad=False)
    with pytest.raises(UserError, match=r"up_proj, which is quantised"):
        merge_coefficients(model)


VIEWS: dict[str, Callable[[nn.Parameter], torch.Tensor]] = {
    "whole": lambda weight: weight.data,
    "transposed": lambda weight: weight.data.t(),
    "rows": lambda weight: weight.data[4:],
}


@pytest.mark.parametrize("view", VIEWS)
def test_two_parameters_over_one_memory(view: str) -> None:
    model = nn.Module()
    model.first = nn.Parameter(torch.randn(8, 8))
    model.second = nn.Parameter(VIEWS[view](model.first))
    with pytest.raises(UserError, match="first and second share memory"):
        MeZO(model, lr=1e-6)
    model.second.requires_grad_(False)
    with pytest.raises(UserError, match="share memory"):
        MeZO(model, lr=1e-6)
    model.second = nn.Parameter(model.second.clone())
    MeZO(model, lr=1e-6)


def test_parts_of_one_storage_are_separate_weights() -> None:
    model, storage = nn.Module(), torch.randn(16, 8)
    model.first, model.second = nn.Parameter(storage[:8]), nn.Parameter(storage[8:])
    MeZO(model, lr=1e-6)


def test_the_type_of_an_export_is_that_of_most_weights() -> None:
    whole, bits = torch.zeros(9, dtype=torch.bfloat16), torch.zeros(99, dtype=torch.int8)
    assert _type_of({"scale": torch.zeros(3), "weight": whole, "packed": bits}) == torch.bfloat16
    assert _type_of({"packed": bits}) == torch.float32
