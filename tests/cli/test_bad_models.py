"""Model folders and tokenizers that are damaged or do not fit end with one sentence that names them."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForPreTraining,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.conftest import Fit
from tests.helpers.refusal import refusal
from zolit import quickstart

Refused = Callable[..., str]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 686776\n"
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1000],
    "zeroed": lambda content: b"\0" * len(content),
    "pointer": lambda content: POINTER,
}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    return lambda folder: refusal(monkeypatch, capfd, tmp_path, f"--model.name_or_path={folder}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(quickstart.MODEL, tmp_path / "model")
    return tmp_path / "model"


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"])
def test_damaged_files(refused: Refused, folder: Path, name: str, damage: str) -> None:
    file = folder / name
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    said = refused(folder)
    assert str(folder) in said
    assert name in said
    assert ("git lfs pull" in said) == (damage == "pointer")


class Code:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("was_run"),)


@pytest.mark.parametrize("damage", [*DAMAGES, "code", "code in a zip", "no tensors"])
def test_damaged_pickles(refused: Refused, folder: Path, tmp_path: Path, damage: str) -> None:
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(AutoModelForCausalLM.from_pretrained(quickstart.MODEL).state_dict(), file)
    match damage:
        case "code":
            file.write_bytes(pickle.dumps(Code()))
        case "code in a zip":
            torch.save({"model.norm.weight": Code()}, file)
        case "no tensors":
            torch.save({"model.norm.weight": 3}, file)
        case _:
            file.write_bytes(DAMAGES[damage](file.read_bytes()))
    said = refused(folder)
    assert str(folder) in said
    assert ("pytorch_model.bin" in said) == (damage != "no tensors")
    assert not Path("was_run").exists()


NORM = "model.norm.weight"
Weights = dict[str, Tensor]
CHANGES: dict[str, tuple[Callable[[Weights], Weights], tuple[str, ...]]] = {
    "one is missing": (lambda w: {k: v for k, v in w.items() if k != NORM}, ("lacks the weight ", NORM)),
    "a layer is missing": (
        lambda w: {k: v for k, v in w.items() if ".1." not in k},
        ("lacks 9 weights", "model.layers.1."),
    ),
    "all are others": (lambda w: {f"x.{k}": v for k, v in w.items()}, ("lacks 30 weights",)),
    "a shape": (lambda w: w | {NORM: torch.ones(63)}, ("the weight ", NORM, "(63,)", "(64,)")),
    "NaN": (lambda w: w | {NORM: w[NORM].index_fill(0, torch.tensor(5), torch.nan)}, (NORM, "NaN")),
    "infinite": (lambda w: w | {NORM: w[NORM].index_fill(0, torch.tensor(0), -torch.inf)}, (NORM, "infinite")),
    "too large": (lambda w: w | {NORM: w[NORM].double() * 1e300}, (NORM, "infinite")),
    "zeros": (lambda w: {k: torch.zeros_like(v) for k, v in w.items()}, ("only zeros",)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights(refused: Refused, folder: Path, change: str) -> None:
    file = folder / "model.safetensors"
    alter, expected = CHANGES[change]
    save_file(alter(load_file(file)), file, metadata={"format": "pt"})
    said = refused(folder)
    assert all(part in said for part in (str(folder), *expected)), said


def test_the_table_of_missing_weights_is_hidden(refused: Refused, folder: Path) -> None:
    file, said = folder / "model.safetensors", StringIO()
    save_file({k: v for k, v in load_file(file).items() if k != NORM}, file, metadata={"format": "pt"})
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        refused(folder)
        assert not said.getvalue()
        AutoModelForCausalLM.from_pretrained(folder)
        assert "LOAD REPORT" in said.getvalue()
    finally:
        logger.removeHandler(handler)


def test_shards(refused: Refused, folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="300KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    first.write_bytes(first.read_bytes()[:-10])
    assert first.name in refused(folder)
    second.unlink()
    assert str(folder) in refused(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert str(folder) in refused(folder)


SIZES: dict[str, Any] = {"vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
BART: dict[str, Any] = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
OTHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "LlamaModel": lambda: LlamaModel(LlamaConfig(**SIZES, intermediate_size=48)),
    "BertForPreTraining": lambda: BertForPreTraining(BertConfig(**SIZES, intermediate_size=48)),
    "RobertaForSequenceClassification": lambda: RobertaForSequenceClassification(
        RobertaConfig(**SIZES, intermediate_size=48)
    ),
    "BartForConditionalGeneration": lambda: BartForConditionalGeneration(
        BartConfig(vocab_size=1000, **BART, decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48)
    ),
    "T5ForConditionalGeneration": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=1000, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_of_other_kinds(refused: Refused, folder: Path, name: str) -> None:
    OTHERS[name]().save_pretrained(folder)
    said = refused(folder)
    assert str(folder) in said
    assert name in said


@pytest.mark.parametrize("name", ["LlamaModel", "RobertaForSequenceClassification", "T5ForConditionalGeneration"])
def test_models_of_other_kinds_that_do_not_say_so(refused: Refused, folder: Path, name: str) -> None:
    OTHERS[name]().save_pretrained(folder)
    edit(folder / "config.json", lambda content: content.update(architectures=None))
    assert str(folder) in refused(folder)


CONFIGS: dict[str, Any] = {
    "no keys": {},
    "a list": [],
    "null": None,
    "a text": "llama",
    "unknown model type": {"model_type": "llamma"},
    "number as model type": {"model_type": 3},
}
OPTIONS: dict[str, Any] = {
    "hidden_size": "many",
    "vocab_size": "few",
    "num_attention_heads": 0,
    "max_position_embeddings": 0,
    "num_hidden_layers": 2.5,
    "hidden_act": "none of these",
    "rope_parameters": {"rope_type": "none of these"},
    "dtype": "float99",
    "quantization_config": {"quant_method": "gptq"},
}


@pytest.mark.parametrize("case", [*CONFIGS, *OPTIONS])
def test_configurations(refused: Refused, folder: Path, case: str) -> None:
    file = folder / "config.json"
    content = CONFIGS[case] if case in CONFIGS else json.loads(file.read_text()) | {case: OPTIONS[case]}
    file.write_text(json.dumps(content))
    said = refused(folder)
    assert str(folder) in said
    assert "tokenizer" not in said
    assert case in OPTIONS or "config.json" in said


TOKENIZERS: dict[str, tuple[str, Any]] = {
    "no keys": ("tokenizer.json", {}),
    "a list": ("tokenizer.json", []),
    "null": ("tokenizer.json", None),
    "settings are a list": ("tokenizer_config.json", []),
    "settings are null": ("tokenizer_config.json", None),
    "bos is a number": ("tokenizer_config.json", {"bos_token": 3}),
    "length is a word": ("tokenizer_config.json", {"model_max_length": "long"}),
    "class is a number": ("tokenizer_config.json", {"tokenizer_class": 5}),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizers(refused: Refused, folder: Path, case: str) -> None:
    name, content = TOKENIZERS[case]
    (folder / name).write_text(json.dumps(content))
    said = refused(folder)
    assert str(folder) in said
    assert "token" in said


def test_tokenizers_without_words(refused: Refused, folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda content: content["model"].update(vocab={}, merges=[]))
    assert "answer" in refused(folder)
    edit(folder / "tokenizer.json", lambda content: content["model"].clear())
    assert str(folder) in refused(folder)


def test_tokenizers_that_panic(refused: Refused, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a library in Rust is then no Exception."""
    monkeypatch.setenv("RUST_BACKTRACE", "0")  # it would take seconds
    edit(folder / "tokenizer.json", lambda content: content["post_processor"].update(special_tokens={}))
    assert "the tokenizer of " in refused(folder)


def test_tokens_that_the_model_lacks(refused: Refused, folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:300].clone()
    save_file(weights, file, metadata={"format": "pt"})
    edit(folder / "config.json", lambda content: content.update(vocab_size=300))
    said = refused(folder)
    assert "record 1 of " in said
    assert "300 tokens" in said


def test_padding_that_the_model_lacks_is_replaced(zolit: Fit, folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda content: content.update(pad_token="<another>"))
    whole = zolit("validate").trainer.callback_metrics["val/loss"]
    assert zolit("validate", f"--model.name_or_path={folder}").trainer.callback_metrics["val/loss"] == whole
