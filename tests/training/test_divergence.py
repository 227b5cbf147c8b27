"""Fits from the command line that learn nothing say so, and end with an error; fits that learn say nothing."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import QUIET, ROOT, Fit, summary
from zolit.cli.main import main
from zolit.training.module import ZerothOrderModule
from zolit.training.objective import Objective

SHORT = ("--trainer.max_steps=24", "--trainer.val_check_interval=12")
LORA = "--config=configs/tuning/lora.yaml"


@contextmanager
def sentences() -> Iterator[list[str]]:
    """Collects what the monitor says; all other warnings stay errors, except the optimizer's of skipped steps."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", module="zolit_callbacks")
        warnings.filterwarnings("ignore", message=".*not all finite", category=RuntimeWarning)
        yield said
    said += [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mezo", ["--model.optimizer.lr=0.5"]),
        ("curvzo", ["--model.optimizer.lr=0.5", "--trainer.callbacks=[]"]),
        ("per-example", ["--model.optimizer.lr=0.1"]),  # on the tiny model 4e-3 learns, and the default 4e-5 is slow
        ("mezo", [LORA, "--model.optimizer.lr=20"]),
    ],
    ids=["mezo", "curvzo", "per example", "lora"],
)
def test_a_rate_a_thousand_times_too_large(zolit: Fit, tmp_path: Path, method: str, options: list[str]) -> None:
    with sentences() as said:
        cli = zolit("fit", *SHORT, f"--config=configs/method/{method}.yaml", *options)
    *rates, diverged = said
    assert len(rates) == (LORA not in options)  # steps of adapters may be longer than their weights
    assert all("is too large; lower model.optimizer.lr" in rate for rate in rates)
    assert diverged.startswith("after 12 steps the weights are")
    assert cli.failure is not None
    assert "after 24 steps" in cli.failure
    assert "best.ckpt has the weights of the best validation" in cli.failure
    assert summary(tmp_path)["steps"] == 24


@pytest.mark.filterwarnings("ignore:step. eps. .* is rounded away")  # this is what is tested
def test_probes_that_do_not_differ(zolit: Fit) -> None:
    with sentences() as said:
        cli = zolit("fit", *SHORT, "--config=configs/method/mezo.yaml", "--model.optimizer.eps=1e-30")
    (alike,) = said
    assert "raise model.optimizer.eps" in alike
    assert cli.failure is not None
    assert "24 steps in a row" in cli.failure


def test_a_fit_that_skips_every_step_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(ZerothOrderModule, "_losses", lambda *_: torch.full((16,), math.nan))
    command = ["zolit", "fit", "--config=configs/quickstart.yaml", *QUIET, "--trainer.max_steps=4"]
    command += [f"--trainer.logger.init_args.save_dir={tmp_path / 'runs'}"]
    monkeypatch.setattr(sys, "argv", command)
    with sentences() as said, pytest.raises(SystemExit) as stopped:
        main()
    assert str(stopped.value.code).startswith("zolit: error: the run learned nothing: all 4 steps were skipped")
    assert said == []
    assert (summary(tmp_path / "runs")["steps"], summary(tmp_path / "runs")["skipped_steps"]) == (4, 4)
    assert "Traceback" not in capsys.readouterr().err


def test_a_validation_with_nan(zolit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, calls = Objective.evaluate, []

    def spoiled(self: Objective, *args: Any) -> Any:
        calls.append(1)
        found = evaluate(self, *args)
        return replace(found, losses=torch.full_like(found.losses, math.nan)) if len(calls) == 5 else found

    monkeypatch.setattr(Objective, "evaluate", spoiled)
    with sentences() as said:
        cli = zolit("fit", *SHORT)
    (metrics,) = said
    assert metrics.startswith("val/loss is nan in the validation after step 12")
    assert cli.failure is None


@pytest.mark.parametrize("method", ["first-order", "fzoo", "hi-zfo", "lozo", "sens-zoq", "zo-act"])
def test_healthy_runs_say_nothing(zolit: Fit, method: str) -> None:
    """pytest turns warnings into errors."""
    cli = zolit("fit", *SHORT, f"--config=configs/method/{method}.yaml")
    assert cli.failure is None


def test_a_resumed_run_says_nothing_twice(zolit: Fit, tmp_path: Path) -> None:
    options = (*SHORT, "--config=configs/method/mezo.yaml", "--model.optimizer.lr=0.5")
    with sentences() as said:
        first = zolit("fit", *options)
    checkpoint = summary(tmp_path)["checkpoint"]
    none = zolit("fit", *options, f"--ckpt_path={checkpoint}")  # no step is left
    assert none.failure == first.failure
    more = zolit("fit", *options, f"--ckpt_path={checkpoint}", "--trainer.max_steps=26")
    assert len(said) == 2
    assert first.failure is not None
    assert more.failure is not None
    assert "after 26 steps" in more.failure


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_of_hardly_any_step_is_no_failure(zolit: Fit, steps: int) -> None:
    assert zolit("fit", f"--trainer.max_steps={steps}", "--data.validation_examples=100").failure is None
