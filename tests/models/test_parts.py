"""Parts that a folder lacks or has beyond its configuration: loaded right, said, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.helpers.families import ENCODER, GROUPED, SMALL
from zolit.errors import UserError
from zolit.models.loading import check_model_path, load_language_model

LLAMA = LlamaConfig(**GROUPED)
BART: dict[str, Any] = {"vocab_size": 200, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
T5: dict[str, Any] = {"vocab_size": 200, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}


def load(folder: Path) -> PreTrainedModel:
    return load_language_model(str(folder), dtype=torch.float32, attn_implementation=None, trust_remote_code=False)


def configure(folder: Path, **options: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


KINDS: dict[str, Callable[[], PreTrainedModel]] = {
    "GPT2Model": lambda: transformers.GPT2Model(transformers.GPT2Config(**SMALL)),
    "T5EncoderModel": lambda: transformers.T5EncoderModel(transformers.T5Config(**T5)),
    "LlamaForSequenceClassification": lambda: transformers.LlamaForSequenceClassification(LLAMA),
    "LlamaForTokenClassification": lambda: transformers.LlamaForTokenClassification(LLAMA),
    "BertForNextSentencePrediction": lambda: transformers.BertForNextSentencePrediction(
        transformers.BertConfig(**ENCODER)
    ),
    "MBartForConditionalGeneration": lambda: transformers.MBartForConditionalGeneration(
        transformers.MBartConfig(**BART)
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_models_that_are_no_language_model(name: str, tmp_path: Path) -> None:
    KINDS[name]().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"names {name}, which is not"):
        load(tmp_path)
    configure(tmp_path, architectures=None)
    if name == "GPT2Model":  # its head is its embedding
        model = load(tmp_path)
        assert model.lm_head.weight is model.transformer.wte.weight
        return
    with pytest.raises(UserError, match=r"lacks .*which \w+ needs|Unrecognized configuration|lacks is_decoder"):
        load(tmp_path)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"attention_bias": True}])
def test_a_configuration_of_another_size(change: dict[str, Any], tmp_path: Path) -> None:
    LlamaForCausalLM(LLAMA).save_pretrained(tmp_path)
    configure(tmp_path, **change)
    if change == {"num_hidden_layers": 1}:
        with pytest.warns(UserWarning, match=r"has 9 weights such as model\.layers\.1\..* for which LlamaForCausalLM"):
            load(tmp_path)
    else:
        with pytest.raises(UserError, match=r"lacks \d+ weights such as model\.layers\."):
            load(tmp_path)


def test_a_head_of_values_is_left_out(tmp_path: Path) -> None:
    LlamaForCausalLM(LLAMA).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"v_head.summary.weight": torch.ones(1, 32)}, file, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"has the weight v_head\.summary\.weight for which"):
        load(tmp_path)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:Model has .tie_word")
def test_an_adapter_of_peft(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"])
    model = LlamaForCausalLM(LLAMA)
    model.save_pretrained(tmp_path / "base")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"adapter of peft \(adapter_config.json\); merge it"):
        check_model_path(str(tmp_path / "adapter"))
    shutil.copytree(tmp_path / "base", tmp_path / "adapter", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"adapter of peft \(adapter_config.json\); merge it"):
        load(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("BertLMHeadModel", "BertConfig"),
        ("RobertaForCausalLM", "RobertaConfig"),
        ("ElectraForCausalLM", "ElectraConfig"),
    ],
)
def test_an_encoder_that_sees_later_tokens_is_no_causal_model(model: str, config: str, tmp_path: Path) -> None:
    made = getattr(transformers, config)(**ENCODER, is_decoder=True, pad_token_id=0)
    getattr(transformers, model)(made).save_pretrained(tmp_path)
    load(tmp_path)
    configure(tmp_path, is_decoder=False)
    with pytest.raises(UserError, match=f"is a {model} whose config.json lacks is_decoder: true"):
        load(tmp_path)


def test_a_decoder_of_an_encoder_decoder_is_a_causal_model(tmp_path: Path) -> None:
    config = transformers.BartConfig(**BART, decoder_attention_heads=4, encoder_attention_heads=4)
    transformers.BartForCausalLM(config).save_pretrained(tmp_path)
    assert load(tmp_path).config.is_decoder
