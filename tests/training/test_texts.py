"""Runs on plain texts: exact perplexity over batches and processes, the best checkpoint, predictions and export."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from zolit_callbacks.checkpoint import _direction

from tests.conftest import Fit, summary
from tests.helpers.examples import records
from tests.helpers.runs import assert_same
from tests.helpers.words import write
from tests.training.test_replicated import fit
from zolit import quickstart
from zolit.cli.export import run as export
from zolit.errors import UserError
from zolit.tasks.classification import Classification

MODEL = str(quickstart.MODEL)
SHORT = ("--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1")


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Options of a run on 24 texts, validated on 13 others of different lengths."""
    train = write(tmp_path / "train.jsonl", records("text", 24))
    held_out = write(tmp_path / "validation.jsonl", held_out_texts())
    files = [f"--data.train_file={train}", f"--data.validation_file={held_out}", f"--data.test_file={held_out}"]
    return ["--config=configs/task/text.yaml", *files, "--data.batch_size=4", "--data.eval_batch_size=4"]


def held_out_texts() -> list[dict[str, Any]]:
    return records("text", 37)[24:]


def naive(model: Any) -> tuple[list[float], list[int]]:
    """Returns the loss and the number of predicted tokens of each text, one by one, by transformers' own loss."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    losses, counts = [], []
    for row in held_out_texts():
        ids = torch.tensor([tokenizer(row["text"])["input_ids"]])
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=ids).loss))
        counts.append(ids.shape[1] - 1)
    return losses, counts


def mean_of_tokens(losses: list[float], counts: list[int]) -> float:
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


@pytest.mark.parametrize("size", [1, 4, 5, 13])
def test_perplexity_is_that_of_all_tokens_whatever_the_batches(zolit: Fit, options: list[str], size: int) -> None:
    losses, counts = naive(AutoModelForCausalLM.from_pretrained(MODEL))
    assert len(set(counts)) > 3
    expected = mean_of_tokens(losses, counts)
    assert abs(expected - sum(losses) / len(losses)) > 1e-3
    for stage, name in (("validate", "val"), ("test", "test")):
        cli = zolit(stage, *options, f"--data.eval_batch_size={size}", config="configs/quickstart.yaml")
        found = cli.trainer.callback_metrics
        assert float(found[f"{name}/loss"]) == pytest.approx(expected, rel=1e-6)
        assert float(found[f"{name}/perplexity"]) == pytest.approx(math.exp(expected), rel=1e-5)


def test_perplexity_of_16_bits(zolit: Fit, options: list[str]) -> None:
    losses, counts = naive(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16))
    cli = zolit("validate", *options, "--trainer.precision=bf16-true")
    assert float(cli.trainer.callback_metrics["val/loss"]) == pytest.approx(mean_of_tokens(losses, counts), rel=1e-2)


def test_perplexity_of_two_processes(zolit: Fit, options: list[str], tmp_path: Path) -> None:
    both, other = fit(tmp_path / "two", 2, 2, *options, *SHORT, "--data.batch_size=2")
    (alone,) = fit(tmp_path / "one", 1, 4, *options, *SHORT)
    assert both["metrics"] == other["metrics"]
    assert both["metrics"].keys() == {"val/loss", "val/perplexity"}
    assert both["metrics"] == pytest.approx(alone["metrics"], rel=1e-4)
    assert both["losses"] == pytest.approx(alone["losses"], rel=1e-4)


def test_the_loss_of_a_step_is_the_mean_over_texts(zolit: Fit, options: list[str], tmp_path: Path) -> None:
    cli = zolit("fit", *options, *SHORT, "--model.optimizer=MeZO", "--model.optimizer.lr=0.0", "--data.batch_size=13")
    (batch,) = [cli.datamodule._encoded["validation"][list(range(13))]]
    losses, _ = naive(AutoModelForCausalLM.from_pretrained(MODEL))
    for size in (None, 5):
        cli.model._micro_batch_size = size
        torch.testing.assert_close(cli.model.objective(batch), torch.tensor(losses), atol=1e-5, rtol=1e-5)


def test_a_run(zolit: Fit, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best checkpoint has the lowest perplexity; a resumed run equals the whole; an exported model scores alike."""
    options += ["--config=configs/method/mezo.yaml", "--model.optimizer.lr=3e-3", "--model.optimizer.momentum=0.5"]
    options += ["--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]
    whole = zolit("fit", *options, "--trainer.max_steps=6")
    printed = capsys.readouterr().out
    figures = summary(tmp_path)
    assert figures["metric"] == "perplexity"
    assert "perplexity before" in printed
    assert f"{figures['perplexity_before']:#.4g}" in printed
    assert f"{100 * figures['perplexity_before']:.1f} %" not in printed
    checkpoint = whole.trainer.checkpoint_callback
    assert (checkpoint.monitor, checkpoint.mode) == ("val/perplexity", "min")
    seen = {figures["perplexity_before"], figures["perplexity_after"]}
    assert figures["best_perplexity"] <= min(seen)
    zolit("fit", *options, "--trainer.max_steps=2", "--trainer.logger.init_args.name=half")
    (half,) = tmp_path.glob("half/*/checkpoints/last.ckpt")
    resumed = zolit("fit", *options, "--trainer.max_steps=6", f"--ckpt_path={half}")
    assert_same(resumed.model.state_dict(), whole.model.state_dict())

    tested = zolit("test", *options, f"--ckpt_path={figures['checkpoint']}")
    perplexity = float(tested.trainer.callback_metrics["test/perplexity"])
    assert perplexity == pytest.approx(figures["perplexity_after"])
    export([f"--ckpt_path={figures['checkpoint']}", f"--output={tmp_path / 'plain'}"])
    losses, counts = naive(AutoModelForCausalLM.from_pretrained(tmp_path / "plain"))
    assert math.exp(mean_of_tokens(losses, counts)) == pytest.approx(perplexity, rel=1e-4)
    assert any(a != b for a, b in zip(losses, naive(AutoModelForCausalLM.from_pretrained(MODEL))[0], strict=True))

    zolit("predict", *options, f"--ckpt_path={figures['checkpoint']}", "--data.task.packed=true")
    (file,) = tmp_path.rglob("predictions.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["record"] for line in lines] == list(range(1, 14))
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    assert [line["tokens"] for line in lines] == counts
    assert [line["perplexity"] for line in lines] == pytest.approx([math.exp(loss) for loss in losses], rel=1e-4)


def test_learning_lowers_the_perplexity(zolit: Fit, options: list[str], tmp_path: Path) -> None:
    """The best checkpoint is the last validation, not the first, which has the highest perplexity."""
    options += ["--config=configs/method/first-order.yaml", "--model.optimizer.lr=1e-3", "--trainer.max_steps=8"]
    zolit("fit", *options, "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=1")
    figures = summary(tmp_path)
    assert figures["best_perplexity"] == figures["perplexity_after"] < 0.9 * figures["perplexity_before"]
    best, last = (torch.load(figures[name], weights_only=True) for name in ("best_checkpoint", "checkpoint"))
    assert best["global_step"] == last["global_step"] == 8


@pytest.mark.parametrize("method", ["per-example", "fzoo", "zo-act", "hi-zfo"])
def test_methods_train_on_packed_texts(zolit: Fit, options: list[str], method: str) -> None:
    options += [f"--config=configs/method/{method}.yaml", "--model.optimizer.lr=1e-6", *SHORT]
    packed = ("--data.task.packed=true", "--data.max_tokens=16", "--model.micro_batch_size=3")
    cli = zolit("fit", *options, *packed)
    assert cli.model.zo.last_step.skipped_steps == 0
    assert cli.model._language.keeps_logits_whole == (method == "per-example")
    assert set(cli.datamodule._encoded["train"].lengths[:-1]) == {16}


@pytest.mark.parametrize("tuning", ["lora", "prefix"])
def test_tunings_train_on_texts(zolit: Fit, options: list[str], tuning: str) -> None:
    options += ["--config=configs/method/mezo.yaml", f"--config=configs/tuning/{tuning}.yaml", *SHORT]
    cli = zolit("fit", *options, "--trainer.precision=bf16-mixed", "--model.optimizer.probing=joint")
    assert cli.model.zo.last_step.skipped_steps == 0


def test_a_metric_cannot_be_trained_on(zolit: Fit, options: list[str]) -> None:
    with pytest.raises(UserError, match=r"model.objective: metric needs a task with answers; plain texts"):
        zolit("fit", *options, *SHORT, "--model.objective=metric")


def test_a_task_says_whether_its_score_is_better_when_smaller() -> None:
    """The name of the score of a user's task may say nothing."""
    task = SimpleNamespace(metrics=("surprise",), lower_is_better=True)
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(task=task))
    assert _direction("val/surprise", trainer) == "min"
    assert _direction("val/other", trainer) is None
    trainer.datamodule.task = Classification()
    assert _direction("val/accuracy", trainer) == "max"
    assert _direction("val/loss", trainer) == "min"
