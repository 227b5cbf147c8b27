"""A file that is no whole checkpoint, or not one of this run: one sentence, an exit status, and nothing is lost."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from zolit_callbacks.checkpoint import _direction

from tests.conftest import QUIET, ROOT
from tests.helpers.runs import assert_same
from tests.helpers.signals import restored_handlers
from zolit.cli.main import main
from zolit.tasks.cb import CB

MEZO = "--config=configs/method/mezo.yaml"
SHORT = (
    "--config=configs/quickstart.yaml",
    *QUIET,
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--data.validation_examples=32",
)
Content = dict[str, Any]


def succeeds(folder: Path, command: str, *options: str) -> bool:
    """Runs the command in this process, with its runs below a folder; returns whether it ends without an error."""
    argv = ["zolit", command, *SHORT, f"--trainer.logger.init_args.save_dir={folder}", *options]
    with pytest.MonkeyPatch.context() as patches, restored_handlers():
        patches.chdir(ROOT)
        patches.setattr(sys, "argv", argv)
        with contextlib.suppress(SystemExit):
            main()
            return True
        return False


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint of a short fit: saves/quickstart/version_0/checkpoints/last.ckpt."""
    folder = tmp_path_factory.mktemp("saves")
    assert succeeds(folder, "fit", MEZO)
    return folder


@pytest.fixture
def run(saves: Path, tmp_path: Path) -> Path:
    """The folder of the checkpoints of a run of the test's own."""
    shutil.copytree(saves, tmp_path / "runs")
    return tmp_path / "runs" / "quickstart" / "version_0" / "checkpoints"


def complaint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Runs the command, which must end with one sentence and no traceback; returns the sentence."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["zolit", *args])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert "weights_only" not in printed
    text = stopped.value.code if isinstance(stopped.value.code, str) else printed
    lines = [line for line in text.strip().splitlines() if line.startswith("zolit: error: ")]
    assert len(lines) == 1
    return lines[0]


Complaint = Callable[..., str]


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Complaint:
    save_dir = f"--trainer.logger.init_args.save_dir={tmp_path / 'new'}"
    return lambda command, *args: complaint(monkeypatch, capsys, command, *SHORT, save_dir, *args)


def flipped(place: float) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        index = int(place * len(content))
        return content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]

    return flip


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut at the end": lambda content: content[:-1],
    "zeroed": lambda content: bytes(len(content)),
    "zeroed at the end": lambda content: content[:-4096] + bytes(4096),
    "text": lambda content: b"version https://git-lfs.github.com/spec/v1\n",
    "a bit": flipped(0.5),
    "a bit at the start": flipped(0.2),
    "a bit at the end": flipped(0.9),
    "twice": lambda content: content[:100_000] + content,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_damaged_checkpoint(bad: Complaint, run: Path, command: str, damage: str) -> None:
    last = run / "last.ckpt"
    last.write_bytes(DAMAGE[damage](last.read_bytes()))
    said = bad(command, MEZO, f"--ckpt_path={last}")
    assert str(last) in said
    assert f"the newest whole save is {run / 'best.ckpt'}" in said


def test_a_folder_for_a_checkpoint(bad: Complaint, run: Path) -> None:
    assert "cannot be read: Is a directory" in bad("validate", MEZO, f"--ckpt_path={run}")


def test_last_finds_the_newest_whole_save(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    run: Path,
) -> None:
    assert succeeds(run.parents[2], "validate", MEZO, "--ckpt_path=last")
    assert f"ckpt_path: {run / 'last.ckpt'}" in caplog.text
    for name in ("last.ckpt", "best.ckpt"):
        (run / name).write_bytes(b"")
        if name == "last.ckpt":
            assert succeeds(run.parents[2], "validate", MEZO, "--ckpt_path=last")
            assert f"ckpt_path: {run / 'best.ckpt'}" in caplog.text
    args = ("validate", *SHORT, MEZO, "--ckpt_path=last", f"--trainer.logger.init_args.save_dir={run.parents[2]}")
    assert "there is no whole checkpoint below" in complaint(monkeypatch, capsys, *args)


def test_last_before_the_first_run(bad: Complaint, tmp_path: Path) -> None:
    """A script that always says so can begin; a validation has nothing to validate."""
    assert "there is no whole checkpoint below" in bad("validate", MEZO, "--ckpt_path=last")
    assert succeeds(tmp_path, "fit", MEZO, "--ckpt_path=last")


def spoil_weight(content: Content) -> None:
    content["state_dict"]["model.model.norm.weight"][3] = torch.nan


def drop_weight(content: Content) -> None:
    del content["state_dict"]["model.model.norm.weight"]


def reshape_weight(content: Content) -> None:
    content["state_dict"]["model.model.norm.weight"] = torch.ones(5)


def add_adapter(content: Content) -> None:
    content["state_dict"]["model.model.norm.lora_A"] = torch.ones(5)


def forget_method(content: Content) -> None:
    content["optimizer_states"] = [torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict()]


def empty_callbacks(content: Content) -> None:
    content["callbacks"] = {name: {"x": 1} for name in content["callbacks"]}


def spoil_loops(content: Content) -> None:
    content["loops"] = {"fit_loop": {"epoch_progress": [1, 2, 3]}}


CHANGES: dict[str, tuple[Callable[[Content], Any], str]] = {
    "a weight that is NaN": (spoil_weight, "norm.weight of the checkpoint is not finite"),
    "a missing weight": (drop_weight, "it has no model.model.norm.weight"),
    "another shape": (reshape_weight, "another model"),
    "another tuning": (add_adapter, "this run has no model.model.norm.lora_A"),
    "another optimizer": (forget_method, "no state of a method of zolit"),
    "no optimizer": (lambda content: content.pop("optimizer_states"), "does not fit this run"),
    "callbacks without state": (empty_callbacks, "does not fit this run"),
    "loops of another kind": (spoil_loops, "does not fit this run"),
    "no weights": (lambda content: content.pop("state_dict"), "is not a checkpoint of zolit"),
    "a list": (lambda content: content.update(state_dict=[1, 2]), "is not a checkpoint of zolit"),
    "words": (lambda content: content["state_dict"].update(x="y"), "its weights are no tensors"),
    "nothing else": (lambda content: content.pop("loops") and content.pop("epoch"), "is not a checkpoint of zolit"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_with_other_content(bad: Complaint, run: Path, change: str) -> None:
    content = torch.load(run / "last.ckpt", weights_only=True)
    act, sentence = CHANGES[change]
    act(content)
    torch.save(content, run / "other.ckpt")
    assert sentence in bad("fit", MEZO, f"--ckpt_path={run / 'other.ckpt'}")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--config=configs/method/curvzo.yaml"], "the checkpoint has method MeZO"),
        (["--config=configs/method/agzo.yaml"], "the checkpoint has method MeZO"),
        ([MEZO, "--model.optimizer.momentum=0.9"], "momentum off"),
        ([MEZO, "--model.optimizer.blocks=layer"], "blocks"),
        ([MEZO, "--config=configs/tuning/lora.yaml"], "another model.tuning"),
        ([MEZO, '--data.task.label_words={"0": " bad", "1": " good"}'], "data.task"),
        ([MEZO, "--data.task.template={sentence} So it was"], "data.task"),
        ([MEZO, "--seed_everything=7"], "seed"),
        ([MEZO, "--data.batch_size=8"], "batch_size"),
        ([MEZO, "--data.train_examples=64"], "train"),
    ],
)
def test_a_run_with_other_options(bad: Complaint, run: Path, options: list[str], sentence: str) -> None:
    assert sentence in bad("fit", *options, "--trainer.max_steps=6", f"--ckpt_path={run / 'last.ckpt'}")


def test_a_new_learning_rate_is_taken(run: Path) -> None:
    args = (MEZO, f"--ckpt_path={run / 'last.ckpt'}", "--trainer.max_steps=6", "--model.optimizer.lr=1e-9")
    assert succeeds(run.parents[2], "fit", *args)
    content = torch.load(run.parents[1] / "version_1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-9


def test_a_new_learning_rate_does_not_replace_a_schedule(tmp_path: Path) -> None:
    schedule = ("--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=2")
    assert succeeds(tmp_path, "fit", MEZO, *schedule, "--model.lr_scheduler.gamma=0.5", "--model.optimizer.lr=1e-3")
    again = ("--ckpt_path=last", "--trainer.max_steps=5", "--model.optimizer.lr=1e-9")
    with pytest.warns(UserWarning, match="goes on from 0.001; 1e-09 has no effect"):
        assert succeeds(tmp_path, "fit", MEZO, *schedule, "--model.lr_scheduler.gamma=0.5", *again)
    (last,) = tmp_path.rglob("version_1/checkpoints/last.ckpt")
    content = torch.load(last, weights_only=True)
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-3 / 4


def test_the_start_counts_as_best_until_something_is_better(tmp_path: Path) -> None:
    """At a rate of 0, all scores are equal."""
    assert succeeds(tmp_path, "fit", MEZO, "--model.optimizer.lr=0")
    folder = tmp_path / "quickstart" / "version_0" / "checkpoints"
    best, last = (torch.load(folder / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert (best["global_step"], last["global_step"]) == (0, 4)


def test_a_folder_with_checkpoints_of_another_run(bad: Complaint, run: Path) -> None:
    before = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert "has the checkpoints of another run" in bad("fit", MEZO, f"--checkpoint.dirpath={run}")
    assert_same(torch.load(run / "last.ckpt", weights_only=True)["state_dict"], before)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("model: {}", "names no model.name_or_path"),
        ("[1, 2]", "names no model.name_or_path"),
        ("a: [", "not a YAML file"),
        ("model: {name_or_path: no/such/model/here}", "no/such/model/here"),
        ("model: {name_or_path: zolit/quickstart/model, tuning: {class_path: zolit.models.LoRA}}", "another model"),
        ("model: {name_or_path: zolit/quickstart/model, tuning: {class_path: no.Such}}", "model.tuning is not valid"),
    ],
)
def test_export_with_another_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path, config: str, sentence: str
) -> None:
    file = run.parent / "config.yaml"
    file.write_text(config)
    output = run / "exported"
    said = complaint(monkeypatch, capsys, "export", f"--ckpt_path={run / 'last.ckpt'}", f"--output={output}")
    assert sentence in said
    assert not list(run.glob("*exported*"))


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("val/loss", "min"), ("val/accuracy", "max"), ("train/loss", "min"), ("val/macro_f1", "max"), ("val/x", None)],
)
def test_the_best_value_by_the_name_of_a_metric(monitor: str, mode: str | None) -> None:
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(task=CB()))
    assert _direction(monitor, trainer) == mode


def test_a_metric_of_unknown_direction(bad: Complaint, tmp_path: Path) -> None:
    assert "checkpoint.mode" in bad("fit", MEZO, "--checkpoint.monitor=zo/forward_passes")
    assert succeeds(tmp_path, "fit", MEZO, "--checkpoint.monitor=val/loss")
    (file,) = tmp_path.rglob("best.ckpt")
    names = torch.load(file, weights_only=True)["callbacks"]
    assert any(name.startswith("StepCheckpoint") and "'mode': 'min'" in name for name in names)
