"""Errors of class paths and options in one sentence, and stages that are named without a method."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.conftest import Fit

STAGES = {
    "selection": "OneLayer",
    "perturbation": "Rademacher",
    "prober": "InPlace",
    "estimator": "OneSided",
    "update": "Adam",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_kept(zolit: Fit, tmp_path: Path, stage: str) -> None:
    """The optimizer is ZerothOrder with the named stage, and with the defaults of the other stages."""
    named = {stage: {"class_path": f"zolit.optim.{STAGES[stage]}"}}
    optimizer = {"class_path": "zolit.optim.ZerothOrder", "init_args": {"lr": 1e-4, **named}}
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump({"model": {"optimizer": optimizer}}))
    cli = zolit("fit", f"--config={tmp_path / 'mixed.yaml'}", "--trainer.fast_dev_run=true")
    assert type(cli.model.zo).__name__ == "ZerothOrder"
    assert type(getattr(cli.model.zo, stage)).__name__ == STAGES[stage]


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--model.optimizer=other_method.Method", "model.optimizer: other_method.Method is not a class"),
        ("--model.optimizer=Mezo", "model.optimizer: there is no method 'Mezo'; known methods are AGZO"),
        (
            "--data.task=other_task.Task",
            "data.task: other_task.Task is not a class of zolit, Lightning or torch, which are all that a",
        ),
        (
            "--model.tuning=zolit.models.Lora",
            "model.tuning: there is no class zolit.models.Lora (module 'zolit.models' has no attribute 'Lora'); --code",
        ),
        ("--model.tuning={class_path: LoRA, init_args: {rank: few}}", "rank: Expected a <class 'int'>. Got value: few"),
    ],
)
def test_errors(zolit: Fit, capsys: pytest.CaptureFixture[str], option: str, sentence: str) -> None:
    with pytest.raises(SystemExit):
        zolit("fit", option)
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"zolit: error: {sentence}")


def test_the_help_of_a_method_does_not_offer_its_model(zolit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        zolit("fit", "--model.optimizer.help=zolit.MeZO")
    page = capsys.readouterr().out
    assert "--model.optimizer.lr" in page
    assert "--model.optimizer.model" not in page
