"""The linear probe in runs from the command line: label words, masked models, precisions, processes, and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import Fit, summary
from tests.helpers.examples import records
from tests.helpers.families import build
from tests.helpers.runs import end
from tests.helpers.tiny import same
from tests.helpers.words import write
from tests.training.test_replicated import fit
from zolit import UserError, quickstart
from zolit.cli.export import run
from zolit.cli.lightning_cli import ZolitCLI

METHOD = "--config=configs/method/linear-probe.yaml"
LOGS = "--trainer.log_every_n_steps=1"
SHORT = ("--trainer.max_steps=6", "--trainer.val_check_interval=3", LOGS)


def scores(cli: ZolitCLI) -> tuple[float, float]:
    metrics = cli.trainer.callback_metrics
    return float(metrics["val/accuracy"]), float(metrics["val/loss"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_a_few_batches_are_enough_and_the_checkpoint_validates_alike(
    zolit: Fit, tmp_path: Path, precision: str
) -> None:
    kind = f"--trainer.precision={precision}"
    fitted = zolit("fit", METHOD, *SHORT, kind)
    figures = summary(tmp_path)
    assert figures["accuracy_before"] == pytest.approx(0.5, abs=0.1)
    assert figures["accuracy_after"] > 0.9
    assert figures["forward_passes"] == figures["steps"] == 6
    assert figures["backward_passes"] == 0
    assert 1.0 < figures["step_flops_over_forward"] < 1.1
    assert scores(fitted) == (figures["accuracy_after"], figures["loss_after"])
    validated = zolit("validate", METHOD, kind, f"--ckpt_path={figures['checkpoint']}")
    assert scores(validated) == scores(fitted)
    assert validated.model.model.lm_head.zo_probe.dtype == torch.float32


def test_a_resumed_run_ends_alike_to_the_bit_and_later_epochs_are_free(zolit: Fit, tmp_path: Path) -> None:
    options = (METHOD, "--data.train_examples=40", "--data.batch_size=8", "--trainer.val_check_interval=3")
    options += ("--trainer.check_val_every_n_epoch=null", LOGS)
    places = [f"--trainer.logger.init_args.save_dir={tmp_path / name}" for name in ("whole", "parts")]
    zolit("fit", *options, "--trainer.max_steps=9", places[0])
    begun = zolit("fit", *options, "--trainer.max_steps=3", places[1])
    saved = begun.trainer.checkpoint_callback.last_model_path
    resumed = zolit("fit", *options, "--trainer.max_steps=9", places[1], f"--ckpt_path={saved}")
    whole, parts = (end(tmp_path / name)[0] for name in ("whole", "parts"))
    assert same(whole["state_dict"], parts["state_dict"])
    assert resumed.model.zo.last_step.total_forward_passes == 5  # of the first epoch
    assert resumed.model.zo.last_step.forward_passes == 0
    assert resumed.model.zo.last_step.loss > 0.0


def test_five_classes(zolit: Fit, tmp_path: Path) -> None:
    """A word of each sentence says its class; the label words say nothing about it."""
    told = ("dull", "weak", "fine", "warm", "vivid")
    words = {"0": " it", "1": " was", "2": " the", "3": " a", "4": " and"}
    rows = [{"sentence": f"a {told[i % 5]} film", "label": i % 5} for i in range(60)]
    task = {"class_path": "zolit.tasks.Classification", "init_args": {"label_words": words}}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({"data": {"task": task}}))
    file = write(tmp_path / "data.jsonl", rows)
    options = (f"--config={tmp_path / 'task.yaml'}", f"--data.train_file={file}", f"--data.validation_file={file}")
    options += ("--data.train_examples=null", "--data.validation_examples=null", "--data.batch_size=10")
    cli = zolit("fit", METHOD, *options, *SHORT)
    assert cli.model.model.lm_head.zo_probe.shape[0] == 5
    figures = summary(tmp_path)
    assert figures["accuracy_before"] < 0.5
    assert figures["accuracy_after"] == 1.0


def test_an_export_needs_no_zolit(zolit: Fit, tmp_path: Path) -> None:
    """Also if the head was that of the embedding."""
    model = AutoModelForCausalLM.from_pretrained(quickstart.MODEL, tie_word_embeddings=True)
    model.lm_head.weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = True
    model.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(quickstart.MODEL).save_pretrained(tmp_path / "tied")
    for name in (str(quickstart.MODEL), str(tmp_path / "tied")):
        place = tmp_path / Path(name).name / "runs"
        options = (f"--model.name_or_path={name}", f"--trainer.logger.init_args.save_dir={place}")
        fitted = zolit("fit", METHOD, *SHORT, *options)
        run([f"--ckpt_path={summary(place)['checkpoint']}", f"--output={place / 'plain'}"])
        plain = AutoModelForCausalLM.from_pretrained(place / "plain")
        (batch, *_) = fitted.datamodule.val_dataloader()
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        inputs["position_ids"] = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            expected, found = fitted.model.model.eval()(**inputs).logits, plain(**inputs).logits
        torch.testing.assert_close(found[:, -1], expected[:, -1], atol=1e-4, rtol=1e-4)
        embeddings = [m.get_input_embeddings().weight for m in (plain, fitted.model.model)]
        assert torch.equal(*embeddings)


@pytest.fixture
def masked(tmp_path: Path) -> str:
    """Returns the folder of a masked model with the quickstart's tokenizer and a mask."""
    build("roberta", noise=0.0).save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(quickstart.MODEL)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_masked_model_is_fitted_at_the_mask(zolit: Fit, tmp_path: Path, masked: str) -> None:
    """In parts, whose padding differs: the features are the head's inputs at the position that the objective reads."""
    train = write(tmp_path / "train.jsonl", records("sst2", 24))
    options = (f"--data.train_file={train}", f"--data.validation_file={train}", "--data.batch_size=8")
    options += ("--data.train_examples=24", "--data.validation_examples=24", f"--model.name_or_path={masked}")
    fitted = zolit("fit", METHOD, *options, "--trainer.max_steps=3", "--model.micro_batch_size=3", LOGS)
    state = fitted.model.zo.state_dict()["zo"]["update"]
    data = fitted.datamodule._encoded["train"][state["examples"].tolist()]
    logits = fitted.model._language.word_logits(data)[:, data.candidates].detach()
    rows = fitted.model.model.get_output_embeddings().zo_probe.detach()
    expected = state["features"] @ rows[:, :-1].T + rows[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(state["classes"], data.labels)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_two_processes_fit_the_same_probe(tmp_path: Path, precision: str) -> None:
    options = (METHOD, f"--trainer.precision={precision}", "--trainer.max_steps=6", "--trainer.val_check_interval=6")
    first, second = fit(tmp_path / "two", 2, 8, *options)
    assert first["losses"] == second["losses"]
    assert same(first["weights"], second["weights"])
    if precision == "32-true":
        (one,) = fit(tmp_path / "one", 1, 16, *options)
        assert one["losses"] == pytest.approx(first["losses"], abs=1e-3)
        torch.testing.assert_close(
            one["weights"]["lm_head.zo_probe"], first["weights"]["lm_head.zo_probe"], rtol=1e-2, atol=1e-3
        )


@pytest.mark.parametrize("task", ["copa", "squad", "cb"])
def test_other_answers_are_refused_before_the_first_step(zolit: Fit, tmp_path: Path, task: str) -> None:
    file = write(tmp_path / "data.jsonl", records(task, 16))
    options = [f"--config=configs/task/{task}.yaml", f"--data.train_file={file}", f"--data.validation_file={file}"]
    options += ["--data.train_examples=16", "--data.validation_examples=16", "--data.batch_size=4"]
    with pytest.raises(UserError, match="LinearProbe needs a task whose answers are the same label words"):
        zolit("fit", METHOD, *options, *SHORT)


def test_other_objectives_and_label_words_are_refused(zolit: Fit, tmp_path: Path) -> None:
    for objective in ("lm", "metric"):
        with pytest.raises(UserError, match=r"set model\.objective task"):
            zolit("fit", METHOD, *SHORT, f"--model.objective={objective}")
    place = f"--trainer.logger.init_args.save_dir={tmp_path / 'whole'}"
    zolit("fit", METHOD, *SHORT, place)
    saved = summary(tmp_path / "whole")["checkpoint"]
    words = json.dumps({"0": " the", "1": " a"})
    with pytest.raises(UserError, match="the linear probe of the checkpoint is for the label words"):
        zolit("validate", METHOD, f"--ckpt_path={saved}", f"--data.task.init_args.label_words={words}")
