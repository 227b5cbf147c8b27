"""Every shipped YAML is parsed against the real signatures, and runs two steps where nothing has to be downloaded."""

from __future__ import annotations

import inspect
from itertools import product
from pathlib import Path

import pytest
import yaml

import zolit
from tests.conftest import ROOT, Fit
from zolit.methods import __all__ as zolit_methods

CONFIGS = ROOT / "configs"
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
TASKS = sorted(path.stem for path in (CONFIGS / "task").glob("*.yaml"))
TUNINGS = sorted(path.stem for path in (CONFIGS / "tuning").glob("*.yaml"))
TWO_STEPS = ("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1")


def test_the_promised_files_are_there() -> None:
    assert {"opt-125m", "opt-2.7b", "llama-2-7b", "smollm2-135m"} <= set(MODELS)
    assert {method.replace("-", "") for method in METHODS} == {name.lower() for name in zolit_methods}
    assert "sst2" in TASKS
    assert {path.relative_to(CONFIGS) for path in CONFIGS.glob("*.yaml")} == {Path("quickstart.yaml")}


COMPOSED = {(model, "mezo", task) for model, task in product(MODELS, TASKS)}
COMPOSED |= {("smollm2-135m", method, task) for method, task in product(METHODS, TASKS)}


@pytest.mark.parametrize(("model", "method", "task"), sorted(COMPOSED))
def test_composed_configs_run_on_the_tiny_model(zolit: Fit, model: str, method: str, task: str) -> None:
    cli = zolit(
        "fit",
        f"--config=configs/method/{method}.yaml",
        f"--config=configs/task/{task}.yaml",
        "--model.name_or_path=zolit/quickstart/model",
        "--data.train_file=zolit/quickstart/reviews.train.jsonl",
        "--data.validation_file=zolit/quickstart/reviews.validation.jsonl",
        *TWO_STEPS,
        config=f"configs/model/{model}.yaml",
    )
    assert cli.trainer.global_step == 2
    assert type(cli.model.zo).__name__.lower() == method.replace("-", "")
    assert cli.model.zo.param_groups[0]["lr"] == cli.config.fit.model.optimizer.init_args.lr


@pytest.mark.parametrize("tuning", TUNINGS)
def test_tunings_compose(zolit: Fit, tuning: str) -> None:
    cli = zolit("fit", "--config=configs/method/mezo.yaml", f"--config=configs/tuning/{tuning}.yaml", *TWO_STEPS)
    assert cli.model.zo.eps == cli.config.fit.model.optimizer.init_args.eps > 1e-3
    names = {weight.name for block in cli.model.zo.blocks for weight in block.weights}
    assert all(tuning in name.lower() or "prompt_encoder" in name for name in names)


@pytest.mark.parametrize("method", METHODS)
def test_method_configs_hold_the_defaults_of_their_class(method: str) -> None:
    """So that a reader of the YAML and a reader of the docstring see the same numbers."""
    optimizer = yaml.safe_load((CONFIGS / "method" / f"{method}.yaml").read_text())["model"]["optimizer"]
    parameters = inspect.signature(getattr(zolit, optimizer["class_path"].removeprefix("zolit."))).parameters
    for option, value in optimizer["init_args"].items():
        default = parameters[option].default
        assert value == (list(default) if isinstance(default, tuple) else default), option


def test_quickstart_runs_curvzo_with_its_four_callbacks(zolit: Fit) -> None:
    cli = zolit("fit", *TWO_STEPS)
    assert type(cli.model.zo).__name__ == "CurvZO"
    names = {type(callback).__name__ for callback in cli.trainer.callbacks}
    assert {"CurvatureTracker", "BudgetLogger", "SupportMonitor", "MemoryProfiler"} <= names
