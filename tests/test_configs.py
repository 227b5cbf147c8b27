"""Every shipped YAML is parsed against the real signatures, and runs two steps where nothing has to be downloaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import datasets
import pytest
import yaml

import zolit
from tests.conftest import ROOT, Fit
from tests.helpers.examples import MAKERS, records
from tests.helpers.options import defaults
from tests.helpers.words import write
from zolit.cli.lightning_cli import ZolitCLI
from zolit.methods import __all__ as zolit_methods

CONFIGS = ROOT / "configs"
MEZO = "configs/method/mezo.yaml"
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
TASKS = sorted(path.stem for path in (CONFIGS / "task").glob("*.yaml"))
TUNINGS = sorted(path.stem for path in (CONFIGS / "tuning").glob("*.yaml"))
RUNS = sorted(path.stem for path in (CONFIGS / "run").glob("*.yaml"))
RUN = "--config=configs/run/mezo.yaml"
TWO_STEPS = ("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1")


def class_name(method: str) -> str:
    """Returns the name of a file's class in lower case; a file may be a second form of a method."""
    return method.removesuffix("-frugal").replace("-", "")


def test_the_promised_files_exist() -> None:
    assert {"opt-125m", "opt-2.7b", "llama-2-7b", "smollm2-135m"} <= set(MODELS)
    assert {class_name(method) for method in METHODS} == {name.lower() for name in zolit_methods}
    assert set(TASKS) == set(MAKERS)
    assert RUNS == ["mezo", "short"]
    assert {path.relative_to(CONFIGS) for path in CONFIGS.glob("*.yaml")} == {Path("quickstart.yaml")}


COMPOSED = {(model, "mezo") for model in MODELS} | {("smollm2-135m", method) for method in METHODS}


@pytest.mark.parametrize(("model", "method"), sorted(COMPOSED))
def test_composed_configs_run_on_the_tiny_model(zolit: Fit, model: str, method: str) -> None:
    cli = zolit(
        "fit",
        f"--config=configs/method/{method}.yaml",
        "--config=configs/task/sst2.yaml",
        "--config=configs/run/short.yaml",
        "--model.name_or_path=zolit/quickstart/model",
        "--data.train_file=zolit/quickstart/reviews.train.jsonl",
        "--data.validation_file=zolit/quickstart/reviews.validation.jsonl",
        "--data.validation_examples=100",
        *TWO_STEPS,
        config=f"configs/model/{model}.yaml",
    )
    assert cli.trainer.global_step == 2
    assert type(cli.model.zo).__name__.lower() == class_name(method)
    given = 1.0 if method == "linear-probe" else cli.config.fit.model.optimizer.init_args.lr
    rate = cli.model.zo.param_groups[0]["lr"]
    assert 0.0 < rate < 1.0 if given == "auto" else rate == given
    callbacks = {type(callback).__name__ for callback in cli.trainer.callbacks}
    assert "MemoryProfiler" in callbacks
    assert ("CurvatureTracker" in callbacks) == (method == "curvzo")


@pytest.mark.parametrize(("run", "steps", "interval"), [("mezo", 20_000, 4_000), ("short", 400, 100)])
def test_a_run_has_its_length_and_watches_memory(
    zolit: Fit, monkeypatch: pytest.MonkeyPatch, run: str, steps: int, interval: int
) -> None:
    """The command reads the length; it does not start the run."""
    monkeypatch.setattr(ZolitCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.setattr(ZolitCLI, "after_instantiate_classes", lambda self: None)
    cli = zolit("fit", f"--config={MEZO}", f"--config=configs/run/{run}.yaml")
    assert (cli.trainer.max_steps, cli.trainer.val_check_interval) == (steps, interval)
    assert cli.trainer.check_val_every_n_epoch is None
    callbacks = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert callbacks.count("MemoryProfiler") == 1
    assert "CurvatureTracker" not in callbacks


def test_no_other_configuration_sets_the_length_of_a_run() -> None:
    for path in CONFIGS.glob("*/*.yaml"):
        if path.parent.name in ("run", "paper"):
            continue
        trainer = yaml.safe_load(path.read_text()).get("trainer", {})
        assert set(trainer) <= {"precision", "callbacks", "callbacks+"}, path


@pytest.mark.parametrize("saved", [False, True], ids=["files", "a saved data set"])
@pytest.mark.parametrize("task", TASKS)
def test_tasks_train_validate_test_and_predict(zolit: Fit, tmp_path: Path, task: str, saved: bool) -> None:
    """Each task gets records in the columns of its data set, from files and from a folder by ``save_to_disk``."""
    config, sizes = f"--config=configs/task/{task}.yaml", {"train": 16, "validation": 4, "test": 6}
    splits = {"train": records(task, 20), "validation": records(task, 26)[20:], "test": records(task, 26)[20:]}
    if saved:
        both = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})
        both.save_to_disk(tmp_path / "saved")
        source = [f"--data.dataset={tmp_path / 'saved'}"]
    else:
        parts = {**splits, "validation": splits["train"][:4]}
        source = [f"--data.{part}_file={write(tmp_path / f'{part}.jsonl', rows)}" for part, rows in parts.items()]
    source += [f"--data.{part}_examples={size}" for part, size in sizes.items()]
    common = [config, RUN, "--model.name_or_path=zolit/quickstart/model", *source]
    quiet = {"config": "configs/method/mezo.yaml"}
    cli = zolit("fit", *common, "--data.batch_size=4", "--trainer.log_every_n_steps=2", *TWO_STEPS, **quiet)
    assert cli.trainer.global_step == 2
    metric = f"val/{cli.datamodule.task.metrics[0]}"
    found = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    assert cli.trainer.checkpoint_callback.monitor == metric
    assert found[metric] > 1 if task == "text" else 0 <= found[metric] <= 1
    assert ("val/macro_f1" in found) == (task == "cb")
    assert ("val/exact_match" in found) == (task in ("squad", "drop"))
    assert math.isfinite(found["val/loss"])
    figures = json.loads(next(tmp_path.rglob("summary.json")).read_text())
    assert figures[f"{cli.datamodule.task.metrics[0]}_after"] == found[metric]
    tested = zolit("test", *common, **quiet)
    assert f"test/{cli.datamodule.task.metrics[0]}" in tested.trainer.callback_metrics
    zolit("predict", *common, **quiet)
    (file,) = tmp_path.rglob("predictions.jsonl")
    assert len(file.read_text().splitlines()) == 6
    assert all({"answer", "label", "loss"} & set(json.loads(line)) for line in file.read_text().splitlines())


@pytest.mark.parametrize("method", ["curvzo", "per-example", "hi-zfo", "first-order", "first-order-frugal", "zo-act"])
@pytest.mark.parametrize("task", ["copa", "squad", "text"])
def test_methods_train_on_long_answers(zolit: Fit, tmp_path: Path, task: str, method: str) -> None:
    train, held_out = (write(tmp_path / f"{name}.jsonl", records(task, 16)) for name in ("train", "validation"))
    files = [f"--data.train_file={train}", f"--data.validation_file={held_out}", "--data.batch_size=4"]
    files += ["--data.train_examples=16", "--data.validation_examples=16", "--model.micro_batch_size=3"]
    options = [f"--config=configs/task/{task}.yaml", f"--config=configs/method/{method}.yaml", RUN, *files]
    cli = zolit("fit", *options, "--model.optimizer.lr=1e-3", "--trainer.log_every_n_steps=2", *TWO_STEPS)
    assert cli.trainer.global_step == 2
    assert cli.model.zo.last_step.skipped_steps == 0


def test_the_best_checkpoint_is_best_at_the_tasks_first_metric(zolit: Fit, tmp_path: Path) -> None:
    """This also holds for a task that no configuration names."""
    rows = [{"question": f"{i} and {i}?", "answer": str(2 * i)} for i in range(16)]
    files = [f"--data.{part}_file={write(tmp_path / f'{part}.jsonl', rows)}" for part in ("train", "validation")]
    options = ["--data.task=zolit.tasks.Generation", *files, "--data.batch_size=4", "--trainer.log_every_n_steps=2"]
    cli = zolit("fit", "--model.name_or_path=zolit/quickstart/model", *options, *TWO_STEPS, config=MEZO)
    assert cli.trainer.checkpoint_callback.monitor == "val/f1"
    figures = json.loads(next(tmp_path.rglob("summary.json")).read_text())
    assert figures["best_f1"] == figures["f1_after"] == float(cli.trainer.callback_metrics["val/f1"])


def test_per_example_directions_with_words_of_several_tokens(zolit: Fit, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", records("cb", 16))
    options = [
        "--config=configs/task/cb.yaml",
        "--config=configs/method/per-example.yaml",
        f"--data.train_file={train}",
    ]
    options += ["--data.train_examples=16", "--data.batch_size=4", "--trainer.log_every_n_steps=1"]
    options += [f"--data.validation_file={train}", "--data.validation_examples=16"]
    for objective in ("task", "lm"):
        cli = zolit("fit", *options, *TWO_STEPS, f"--model.objective={objective}")
        report = cli.model.zo.last_step
        assert report is not None
        assert len(report.coefficients) == (12 if objective == "task" else 4)  # three words of several tokens


@pytest.mark.parametrize("tuning", TUNINGS)
def test_tunings_compose(zolit: Fit, tuning: str) -> None:
    cli = zolit("fit", "--config=configs/method/mezo.yaml", f"--config=configs/tuning/{tuning}.yaml", *TWO_STEPS)
    assert cli.model.zo.eps == cli.config.fit.model.optimizer.init_args.eps > 1e-3
    names = {weight.name for block in cli.model.zo.blocks for weight in block.weights}
    assert all(tuning in name.lower() or "prompt_encoder" in name for name in names)


@pytest.mark.parametrize("method", [method for method in METHODS if not method.endswith("-frugal")])
def test_method_configs_hold_the_defaults_of_their_class(method: str) -> None:
    """A reader of the YAML and a reader of the docstring see the same numbers."""
    optimizer = yaml.safe_load((CONFIGS / "method" / f"{method}.yaml").read_text())["model"]["optimizer"]
    known = defaults(getattr(zolit, optimizer["class_path"].removeprefix("zolit.")))
    for option, value in optimizer["init_args"].items():
        default = known[option]
        assert value == (list(default) if isinstance(default, tuple) else default), option


def test_quickstart_runs_curvzo_with_its_four_callbacks(zolit: Fit) -> None:
    cli = zolit("fit", *TWO_STEPS)
    assert type(cli.model.zo).__name__ == "CurvZO"
    names = {type(callback).__name__ for callback in cli.trainer.callbacks}
    assert {"CurvatureTracker", "BudgetLogger", "SupportMonitor", "MemoryProfiler"} <= names
