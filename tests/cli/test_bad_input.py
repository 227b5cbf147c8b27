"""Invalid input ends with one sentence that names the option, the file or the record."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import QUIET, ROOT
from zolit.cli.main import main

TRAIN = ROOT / "zolit" / "quickstart" / "reviews.train.jsonl"
MODEL = ROOT / "zolit" / "quickstart" / "model"


Bad = Callable[..., str]


def complaint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> str:
    """Runs the command line, and returns its last line."""
    monkeypatch.chdir(ROOT)
    save_dir = f"--trainer.logger.init_args.save_dir={folder}"
    command = ["zolit", "fit", "--config=configs/quickstart.yaml", *QUIET, save_dir, "--trainer.max_steps=2", *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert stopped.value.code not in (0, None)
    if isinstance(stopped.value.code, str):
        said = stopped.value.code
    last = said.strip().splitlines()[-1]
    assert last.startswith("zolit: error: ")
    return last


def lines(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Bad:
    return lambda *options: complaint(monkeypatch, capsys, tmp_path, *options)


def test_missing_file(bad: Bad) -> None:
    assert "no/such.jsonl" in bad("--data.train_file=no/such.jsonl")


def test_a_run_without_a_length(bad: Bad) -> None:
    """Lightning would train for 1,000 epochs."""
    assert "trainer.max_steps: the run has no length" in bad("--trainer.max_steps=-1")


def test_unknown_column(bad: Bad) -> None:
    said = bad("--data.task.template={text} It was")
    assert "'text'" in said or "{text}" in said
    assert "sentence" in said


def test_empty_file(bad: Bad, tmp_path: Path) -> None:
    assert "empty.jsonl" in bad(f"--data.train_file={lines(tmp_path / 'empty.jsonl')}")


def test_label_without_a_word(bad: Bad, tmp_path: Path) -> None:
    records = [{"sentence": "The inn was fine.", "label": label} for label in (0, 1, 2)] * 16
    said = bad(f"--data.train_file={lines(tmp_path / 'three.jsonl', *records)}")
    assert "three.jsonl" in said
    assert "'2'" in said or " 2" in said


def test_label_words_that_are_equal(bad: Bad) -> None:
    said = bad('--data.task.label_words={"0": " terrible", "1": " terrible"}')
    assert "label_words" in said or "label words" in said


def test_prompt_longer_than_the_context(bad: Bad, tmp_path: Path) -> None:
    records = [{"sentence": "The inn was fine. " * 100, "label": i % 2} for i in range(16)]
    said = bad(f"--data.train_file={lines(tmp_path / 'long.jsonl', *records)}")
    assert "long.jsonl" in said
    assert "128" in said


def test_unknown_method(bad: Bad) -> None:
    said = bad("--model.optimizer=MeZZO")
    assert "MeZZO" in said
    assert "CurvZO" in said
    assert "MeZO" in said
    said = bad("--model.optimizer=zolit.MeZZO")
    assert "'zolit.MeZZO'" in said
    assert "CurvZO" in said


@pytest.mark.parametrize(
    ("option", "value"),
    [("budget", "1.5"), ("budget", "0"), ("budget_min", "0.9"), ("budget_max", "2"), ("exploration", "0.5")],
)
def test_impossible_budget(bad: Bad, option: str, value: str) -> None:
    assert option.split("_", maxsplit=1)[0] in bad(f"--model.optimizer.{option}={value}")


def test_option_that_a_method_does_not_have(bad: Bad) -> None:
    said = bad("--model.optimizer=MeZO", "--model.optimizer.init_args.budgett=0.4")
    assert "budgett" in said


def test_option_that_does_not_exist(bad: Bad) -> None:
    assert "--data.batchsize" in bad("--data.batchsize=3")


def test_option_of_a_wrong_type(bad: Bad) -> None:
    said = bad("--model.micro_batch_size=few")
    assert "model.micro_batch_size" in said
    assert "'few'" in said
    assert "int" in said


def test_config_that_does_not_exist(bad: Bad) -> None:
    assert "configs/none.yaml" in bad("--config=configs/none.yaml")


def test_16_mixed(bad: Bad) -> None:
    said = bad("--trainer.precision=16-mixed")
    assert "16-mixed" in said
    assert "bf16" in said


def test_model_folder_without_weights(bad: Bad, tmp_path: Path) -> None:
    folder = tmp_path / "weightless"
    shutil.copytree(MODEL, folder)
    (folder / "model.safetensors").unlink()
    said = bad(f"--model.name_or_path={folder}")
    assert "weightless" in said
    assert "weights" in said


def test_model_folder_that_does_not_exist(bad: Bad) -> None:
    assert "./no/model" in bad("--model.name_or_path=./no/model")


def test_checkpoint_that_does_not_exist(bad: Bad) -> None:
    assert "nope.ckpt" in bad("--ckpt_path=nope.ckpt")


@pytest.mark.parametrize("option", ["gradient_clip_val=1.0", "accumulate_grad_batches=2"])
def test_options_that_need_gradients(bad: Bad, option: str) -> None:
    assert "micro_batch_size" in bad(f"--trainer.{option}")


def test_plateau_scheduler_without_a_monitor(bad: Bad) -> None:
    said = bad("--model.lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau")
    assert "lightning.pytorch.cli.ReduceLROnPlateau" in said


def test_no_devices(bad: Bad) -> None:
    assert "devices" in bad("--trainer.devices=0")


def test_micro_batch_size(bad: Bad) -> None:
    assert "micro_batch_size" in bad("--model.micro_batch_size=0")


def test_losses_that_are_never_finite(bad: Bad) -> None:
    with pytest.warns(RuntimeWarning, match="not all finite"):
        said = bad("--model.optimizer.eps=1e38", "--model.optimizer.max_skipped=2", "--trainer.max_steps=10")
    assert "max_skipped" in said
