"""Tiny models of each architecture, through fit, validation, checkpoint, prediction and export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3Config,
    RobertaConfig,
)

from tests.conftest import Fit, summary
from tests.helpers.examples import records
from tests.helpers.words import write
from zolit import quickstart
from zolit.cli.export import run
from zolit.data.datamodule import PromptedData
from zolit.tasks.classification import Classification

SIZES = {"vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "opt": lambda: OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=128),
    "opt, projected": lambda: OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=24, max_position_embeddings=128),
    "llama": lambda: LlamaConfig(**GROUPED),
    "llama, tied": lambda: LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=16),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=8),
    "qwen3, tied": lambda: Qwen3Config(**GROUPED, head_dim=8, tie_word_embeddings=True),
    "roberta": lambda: RobertaConfig(
        **SIZES, intermediate_size=48, max_position_embeddings=130, pad_token_id=1, type_vocab_size=1
    ),
}
QUIET = {"config": "configs/method/mezo.yaml"}


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Returns a model folder of the test's architecture, with the quickstart's tokenizer and a mask."""
    torch.manual_seed(0)
    config = CONFIGS[request.param]()
    kind = AutoModelForMaskedLM if request.param == "roberta" else AutoModelForCausalLM
    kind.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(quickstart.MODEL)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def words(tmp_path: Path) -> list[str]:
    """Returns options of a task whose words are single tokens of the quickstart's tokenizer."""
    train = write(tmp_path / "train.jsonl", records("sst2", 24))
    held_out = write(tmp_path / "validation.jsonl", records("sst2", 30)[24:])
    return [f"--data.train_file={train}", f"--data.validation_file={held_out}", "--data.batch_size=8"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("folder", CONFIGS, indirect=True)
def test_fit_validate_predict_export(zolit: Fit, folder: Path, tmp_path: Path, precision: str) -> None:
    options = [*words(tmp_path), f"--model.name_or_path={folder}", f"--trainer.precision={precision}"]
    short = ["--model.optimizer.lr=1e-3", "--trainer.max_steps=3", "--trainer.log_every_n_steps=1"]
    fitted = zolit("fit", *options, *short, **QUIET)
    figures = summary(tmp_path)
    assert figures["steps"] == 3
    validated = zolit("validate", *options, f"--ckpt_path={figures['checkpoint']}", **QUIET)
    metrics = validated.trainer.callback_metrics
    assert float(metrics["val/loss"]) == pytest.approx(figures["loss_after"], abs=1e-6)
    predicted = zolit("predict", *options, f"--ckpt_path={figures['checkpoint']}", **QUIET)
    assert predicted.trainer.global_step == 0
    (file,) = tmp_path.rglob("predictions.jsonl")
    assert {tuple(json.loads(line)) for line in file.read_text().splitlines()} == {("label", "probabilities")}

    run([f"--ckpt_path={figures['checkpoint']}", f"--output={tmp_path / 'plain'}"])
    kind = AutoModelForMaskedLM if AutoConfig.from_pretrained(folder).model_type == "roberta" else AutoModelForCausalLM
    plain = kind.from_pretrained(tmp_path / "plain")
    assert plain.dtype == (torch.float32 if precision == "32-true" else torch.bfloat16)
    original = kind.from_pretrained(folder, dtype=plain.dtype).state_dict()
    state = fitted.model.model.state_dict()
    exported = plain.state_dict()
    assert set(exported) == set(state)
    assert all(torch.equal(exported[name], value) for name, value in state.items())
    assert any(not torch.equal(original[name], value) for name, value in state.items())
    assert len(AutoTokenizer.from_pretrained(tmp_path / "plain")) == len(AutoTokenizer.from_pretrained(folder))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("folder", ["llama", "roberta"], indirect=True)
@pytest.mark.filterwarnings("ignore:.*the run has diverged")  # the rate is large, so that each score moves
def test_lora_is_merged_by_export(zolit: Fit, folder: Path, tmp_path: Path) -> None:
    options = [*words(tmp_path), f"--model.name_or_path={folder}", "--config=configs/tuning/lora.yaml"]
    short = ["--model.optimizer.lr=1", "--trainer.max_steps=12", "--trainer.log_every_n_steps=1"]
    fitted = zolit("fit", *options, *short, **QUIET)
    (batch, *_) = fitted.datamodule.val_dataloader()
    run([f"--ckpt_path={summary(tmp_path)['checkpoint']}", f"--output={tmp_path / 'plain'}"])
    validated = zolit("validate", *words(tmp_path), f"--model.name_or_path={tmp_path / 'plain'}", **QUIET)
    untouched = zolit("validate", *words(tmp_path), f"--model.name_or_path={folder}", **QUIET)
    losses = [cli.model.objective(batch) for cli in (fitted, validated, untouched)]
    torch.testing.assert_close(losses[0], losses[1], atol=3e-5, rtol=3e-5)
    assert not torch.allclose(losses[0], losses[2], atol=3e-4)


@pytest.mark.parametrize("folder", ["roberta"], indirect=True)
def test_a_masked_models_prompts(folder: Path, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", records("sst2", 24))
    data = PromptedData(name_or_path=str(folder), train_file=train, batch_size=4)
    data.setup("fit")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = next(iter(data.train_dataloader()))
    at = batch.input_ids[torch.arange(4), batch.answer_position]
    assert (at == tokenizer.mask_token_id).all()
    assert [tokenizer.decode([token]) for token in batch.candidates] == [" terrible", " great"]
    sentence = str(records("sst2", 24)[int(batch.indices[0])]["sentence"]).strip()
    text = tokenizer.decode(batch.input_ids[0][batch.attention_mask[0] == 1])
    assert text.replace("<mask>", " <mask>").replace("  ", " ").endswith(f"{sentence} It was <mask>.")
    long = Classification("{sentence}", {"0": " terrible terrible", "1": " great"})
    with pytest.raises(ValueError, match="' terrible terrible' is 2 tokens of this masked model"):
        PromptedData(name_or_path=str(folder), train_file=train, task=long).setup("fit")
