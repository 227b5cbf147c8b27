"""A fit from the command line: its results, its files, and the options that change it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT, Fit, summary

SHORT = ("--trainer.max_steps=6", "--trainer.val_check_interval=3")


@pytest.mark.parametrize("method", ["mezo", "curvzo"])
def test_quickstart_learns(zolit: Fit, tmp_path: Path, method: str) -> None:
    zolit(
        "fit", f"--config=configs/method/{method}.yaml", "--trainer.max_steps=300", "--trainer.val_check_interval=300"
    )
    figures = summary(tmp_path)
    assert figures["accuracy_before"] < 0.6
    assert figures["accuracy_after"] >= 0.9
    assert figures["forward_passes"] == 600
    assert figures["steps"] == 300
    assert figures["step_over_two_forwards"] > 0.5
    assert figures["peak_memory_bytes"] > 2**20
    assert Path(figures["checkpoint"]).is_file()
    assert figures["skipped_steps"] == 0


def test_global_step_checkpoints_schedule_and_logs_count_steps(zolit: Fit, tmp_path: Path) -> None:
    cli = zolit(
        "fit",
        *SHORT,
        "--trainer.log_every_n_steps=1",
        "--trainer.callbacks+=LearningRateMonitor",
        "--model.optimizer.lr=1e-3",
        "--model.lr_scheduler=torch.optim.lr_scheduler.StepLR",
        "--model.lr_scheduler.step_size=2",
        "--model.lr_scheduler.gamma=0.5",
    )
    assert cli.trainer.global_step == 6
    assert any(isinstance(callback, LearningRateMonitor) for callback in cli.trainer.callbacks)
    events = EventAccumulator(cli.trainer.log_dir)
    events.Reload()
    rates = {event.step: event.value for event in events.Scalars("zo/learning_rate")}
    assert rates == pytest.approx({0: 1e-3, 1: 1e-3, 2: 5e-4, 3: 5e-4, 4: 2.5e-4, 5: 2.5e-4})
    monitored = {event.step: event.value for event in events.Scalars("lr-CurvZO")}
    assert monitored == pytest.approx(rates)
    assert [event.step for event in events.Scalars("val/accuracy")] == [2, 5]
    checkpoint = torch.load(Path(summary(tmp_path)["checkpoint"]), weights_only=True)
    assert checkpoint["global_step"] == 6


def test_plateau_scheduler_is_stepped_by_validations(zolit: Fit) -> None:
    cli = zolit(
        "fit",
        *SHORT,
        "--model.optimizer.lr=1e-3",
        "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
        "--model.lr_scheduler.monitor=val/loss",
        "--model.lr_scheduler.patience=0",
        "--model.lr_scheduler.threshold=1e9",
        "--model.lr_scheduler.factor=0.1",
    )
    assert cli.model.zo.param_groups[0]["lr"] == pytest.approx(1e-5)  # reduced twice


def test_early_stopping_ends_the_run(zolit: Fit) -> None:
    cli = zolit(
        "fit",
        "--trainer.max_steps=100",
        "--trainer.val_check_interval=2",
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val/accuracy",
        "--trainer.callbacks.mode=max",
        "--trainer.callbacks.min_delta=2",
        "--trainer.callbacks.patience=2",
    )
    assert cli.trainer.global_step == 6


@pytest.mark.parametrize("method", ["mezo", "per-example"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_precisions_probe_and_move(zolit: Fit, precision: str, method: str) -> None:
    cli = zolit("fit", *SHORT, f"--trainer.precision={precision}", f"--config=configs/method/{method}.yaml")
    report = cli.model.zo.last_step
    assert report is not None
    assert report.losses[0] != report.losses[1]
    assert next(cli.model.model.parameters()).dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)


@pytest.mark.parametrize("method", ["curvzo", "per-example"])
def test_micro_batches_give_the_same_step_to_rounding(zolit: Fit, method: str) -> None:
    config = f"--config=configs/method/{method}.yaml"
    whole = zolit("fit", *SHORT, config)
    pieces = zolit("fit", *SHORT, config, "--model.micro_batch_size=5")
    for a, b in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_language_modeling_objective_is_the_likelihood_of_the_correct_word(zolit: Fit) -> None:
    losses = {}
    for objective in ("task", "lm"):
        cli = zolit("fit", "--trainer.max_steps=1", f"--model.objective={objective}")
        (batch, *_) = cli.datamodule.val_dataloader()
        losses[objective] = cli.model.objective(batch)
        logits = cli.model._language.word_logits(batch).float()
        words = logits.log_softmax(1)[:, batch.candidates]
        right = words.gather(1, batch.labels[:, None])[:, 0]
        expected = -right if objective == "lm" else words.logsumexp(1) - right
        torch.testing.assert_close(losses[objective], expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(losses["lm"], losses["task"], atol=1e-2)


def test_validate_test_and_predict(zolit: Fit, tmp_path: Path) -> None:
    cli = zolit("validate")
    assert float(cli.trainer.callback_metrics["val/accuracy"]) == pytest.approx(0.5, abs=0.1)
    cli = zolit("test", "--data.test_file=zolit/quickstart/reviews.validation.jsonl")
    assert "test/accuracy" in cli.trainer.callback_metrics
    zolit("predict")
    (written,) = tmp_path.rglob("predictions.jsonl")
    predictions = [json.loads(line) for line in written.read_text().splitlines()]
    assert [prediction["record"] for prediction in predictions] == list(range(1, 401))
    for prediction in predictions:
        assert sum(prediction["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert prediction["label"] == max(prediction["probabilities"], key=prediction["probabilities"].get)


def test_validate_and_predict_use_the_checkpoint(zolit: Fit, tmp_path: Path) -> None:
    zolit("fit", "--trainer.max_steps=200", "--trainer.val_check_interval=200")
    figures = summary(tmp_path)
    cli = zolit("validate", f"--ckpt_path={figures['checkpoint']}")
    assert float(cli.trainer.callback_metrics["val/accuracy"]) == pytest.approx(figures["accuracy_after"])
    zolit("predict", f"--ckpt_path={figures['checkpoint']}")
    (written,) = tmp_path.rglob("predictions.jsonl")
    predicted = [json.loads(line)["label"] for line in written.read_text().splitlines()]
    records = (ROOT / "zolit" / "quickstart" / "reviews.validation.jsonl").read_text().splitlines()
    hits = [label == str(json.loads(record)["label"]) for label, record in zip(predicted, records, strict=True)]
    assert sum(hits) / len(hits) == pytest.approx(figures["accuracy_after"])


def test_seed_everything_sets_all_seeds(zolit: Fit) -> None:
    def losses(*seeds: str) -> float:
        cli = zolit("fit", "--trainer.max_steps=1", *seeds)
        assert cli.model.zo.last_step is not None
        return cli.model.zo.last_step.loss

    assert losses("--seed_everything=1") == losses("--model.optimizer.seed=1", "--data.seed=1")
    assert losses("--seed_everything=1") != losses("--seed_everything=2")


def test_a_single_callback(zolit: Fit) -> None:
    zolit("fit", "--trainer.max_steps=1", "--trainer.callbacks=zolit_callbacks.BudgetLogger")


def test_fast_dev_run_writes_nothing(zolit: Fit, tmp_path: Path) -> None:
    zolit("fit", "--trainer.fast_dev_run=true", f"--trainer.default_root_dir={tmp_path}")
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("summary.json"))


def test_predicting_needs_no_labels(zolit: Fit, tmp_path: Path) -> None:
    texts = tmp_path / "new.jsonl"
    texts.write_text('{"sentence": "The hall of the concert was lively."}\n' * 3)
    zolit("predict", f"--data.test_file={texts}")
    (written,) = tmp_path.rglob("predictions.jsonl")
    assert len(written.read_text().splitlines()) == 3


def test_without_a_logger(zolit: Fit, tmp_path: Path) -> None:
    zolit("fit", *SHORT, "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}")
    assert summary(tmp_path)["steps"] == 6
    assert (tmp_path / "version_0" / "checkpoints" / "last.ckpt").is_file()


def test_last_checkpoint_holds_the_final_weights(zolit: Fit, tmp_path: Path) -> None:
    cli = zolit("fit", "--trainer.max_steps=5", "--trainer.val_check_interval=3")
    figures = summary(tmp_path)
    saved = torch.load(Path(figures["checkpoint"]), weights_only=True)
    assert saved["global_step"] == 5
    for name, weight in cli.model.state_dict().items():
        assert torch.equal(saved["state_dict"][name], weight), name
    assert torch.load(Path(figures["best_checkpoint"]), weights_only=True)["global_step"] == 0  # no score was better


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_validation_counts_exactly(zolit: Fit, precision: str) -> None:
    """Over 399 examples in unequal batches; sums in bfloat16 would be off in the third digit."""
    cli = zolit("validate", f"--trainer.precision={precision}", "--data.validation_examples=399")
    cli.model.eval()
    hits, losses = 0, 0.0
    for batch in cli.datamodule.val_dataloader():
        with torch.no_grad():
            logits = cli.model._language.word_logits(batch)[:, batch.candidates].float()
        hits += int((logits.argmax(1) == batch.labels).sum())
        losses += float(torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum"))
    assert float(cli.trainer.callback_metrics["val/accuracy"]) == pytest.approx(hits / 399, abs=1e-6)
    assert float(cli.trainer.callback_metrics["val/loss"]) == pytest.approx(losses / 399, rel=1e-5)


def test_a_resumed_run_remembers_the_best_checkpoint(zolit: Fit, tmp_path: Path) -> None:
    options = ("--trainer.val_check_interval=2", "--checkpoint.monitor=val/loss", "--checkpoint.mode=max")
    zolit("fit", "--trainer.max_steps=2", *options)
    first = summary(tmp_path)
    zolit("fit", "--trainer.max_steps=4", f"--ckpt_path={first['checkpoint']}", "--model.optimizer.lr=1e-3", *options)
    second = json.loads((tmp_path / "quickstart" / "version_1" / "summary.json").read_text())
    assert second["accuracy_before"] == first["accuracy_before"]
    assert second["forward_passes"] == 8
    assert second["best_checkpoint"] in (first["best_checkpoint"], second["checkpoint"].replace("last", "best"))
    assert Path(first["best_checkpoint"]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", ["mezo", "curvzo"])
def test_quickstart_never_fails(zolit: Fit, tmp_path: Path, method: str, seed: int) -> None:
    """Runs the quickstart with other directions and another order of the data."""
    config = f"--config=configs/method/{method}.yaml"
    zolit("fit", config, f"--model.optimizer.seed={seed}", f"--data.seed={seed}")
    assert summary(tmp_path)["accuracy_after"] >= 0.9
