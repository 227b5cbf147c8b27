"""A causal and a masked model: exported adapters, and prompts with a mask."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
)

from tests.conftest import Fit, summary
from tests.helpers.examples import records
from tests.helpers.families import build
from tests.helpers.words import write
from zolit import quickstart
from zolit.cli.export import run
from zolit.data.datamodule import PromptedData
from zolit.tasks.classification import Classification


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Returns a model folder of the test's architecture, with the quickstart's tokenizer and a mask."""
    build(request.param, noise=0.0).save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(quickstart.MODEL)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def words(tmp_path: Path) -> list[str]:
    """Returns options of a task whose words are single tokens of the quickstart's tokenizer."""
    train = write(tmp_path / "train.jsonl", records("sst2", 24))
    held_out = write(tmp_path / "validation.jsonl", records("sst2", 30)[24:])
    return [f"--data.train_file={train}", f"--data.validation_file={held_out}", "--data.batch_size=8"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*the run has diverged")  # the rate is large, so that each score moves
@pytest.mark.parametrize("folder", ["llama", "roberta"], indirect=True)
@pytest.mark.parametrize(
    ("method", "options"),
    [("mezo", ["--config=configs/tuning/lora.yaml"]), ("zo-act", ["--config=configs/method/zo-act.yaml"])],
    ids=["lora", "zo-act"],
)
def test_added_weights_are_merged_by_export(
    zolit: Fit, folder: Path, tmp_path: Path, method: str, options: list[str]
) -> None:
    options = [*words(tmp_path), f"--model.name_or_path={folder}", *options]
    short = ["--model.optimizer.lr=1", "--trainer.max_steps=12", "--trainer.log_every_n_steps=1"]
    fitted = zolit("fit", *options, *short, config=f"configs/method/{method}.yaml")
    (batch, *_) = fitted.datamodule.val_dataloader()
    run([f"--ckpt_path={summary(tmp_path)['checkpoint']}", f"--output={tmp_path / 'plain'}"])
    exported = f"--model.name_or_path={tmp_path / 'plain'}"
    validated = zolit("validate", *words(tmp_path), exported, config="configs/method/mezo.yaml")
    untouched = zolit("validate", *words(tmp_path), f"--model.name_or_path={folder}", config="configs/method/mezo.yaml")
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
