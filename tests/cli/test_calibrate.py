"""``zolit calibrate`` writes a file with which a fit takes one forward a step, and refuses what cannot work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import zolit.cli
from tests.conftest import QUIET, ROOT, Fit
from tests.helpers.examples import records
from tests.helpers.words import write
from zolit.cli.calibrate import CalibrationCLI, described
from zolit.cli.lightning_cli import run
from zolit.errors import UserError
from zolit.optim.feedback.saved import hashes_of
from zolit.quickstart import MODEL

Calibrate = Callable[..., dict[str, Any]]


@pytest.fixture
def calibrate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calibrate:
    """Calibrates on the quickstart's data, with more options, and returns the file's metadata and matrices."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["zolit"])

    def call(*args: str, config: str = "configs/quickstart.yaml") -> dict[str, Any]:
        file = tmp_path / "jacobians.safetensors"
        options = [f"--config={config}", *QUIET, f"--trainer.default_root_dir={tmp_path / 'runs'}", f"--output={file}"]
        run(["calibrate", *options, *args], CalibrationCLI)
        with safe_open(file, "pt") as content:
            return {**content.metadata(), **load_file(file)}

    return call


def test_a_file_and_its_runs(
    calibrate: Calibrate, zolit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = calibrate("--forwards=24", "--config=configs/method/direct-feedback.yaml")
    assert found["forwards"] == "24"
    assert json.loads(found["weights"]) == hashes_of(AutoModelForCausalLM.from_pretrained(MODEL))
    fits = json.loads(found["fits"])
    assert all(0.0 < fit < 1.0 for fit in fits)
    assert [found[f"jacobians.{layer}"].shape for layer in range(3)] == [torch.Size([64, 64])] * 3
    printed = capsys.readouterr().out
    assert f"tokens:   {int(found['tokens']):,} for the fit" in printed
    assert "jacobians.safetensors (0.0249 MiB, 3 layers)" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["jacobians.safetensors"]  # no folder of a run
    method = ("--config=configs/method/direct-feedback.yaml", "--trainer.max_steps=3")
    fitted = zolit("fit", *method, f"--model.optimizer.init_args.jacobians={tmp_path / 'jacobians.safetensors'}")
    assert fitted.model.zo.last_step.total_forward_passes == 4
    # bfloat16 holds the same weights, and the file is taken there too
    again = zolit(
        "fit",
        *method,
        f"--model.optimizer.init_args.jacobians={tmp_path / 'jacobians.safetensors'}",
        "--trainer.precision=bf16-true",
    )
    assert again.model.zo.last_step.total_forward_passes == 4


def test_texts_differ_and_the_seed_decides(calibrate: Calibrate) -> None:
    first, again, other = (calibrate("--forwards=8", f"--seed_everything={seed}") for seed in (0, 0, 1))
    assert torch.equal(first["jacobians.1"], again["jacobians.1"])
    assert not torch.equal(first["jacobians.1"], other["jacobians.1"])
    assert int(first["tokens"]) != int(other["tokens"])


def test_the_base_model_is_measured_whatever_is_tuned(calibrate: Calibrate) -> None:
    plain = calibrate("--forwards=4")
    lora = calibrate("--forwards=4", "--model.tuning=zolit.models.LoRA")
    assert plain["weights"] == lora["weights"]
    assert torch.equal(plain["jacobians.1"], lora["jacobians.1"])


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_16_bits_give_nearly_the_same(calibrate: Calibrate, precision: str) -> None:
    exact, own = calibrate("--forwards=16"), calibrate("--forwards=16", f"--trainer.precision={precision}")
    assert exact["weights"] == own["weights"]
    for layer in range(3):
        left, right = (found[f"jacobians.{layer}"].float() for found in (exact, own))
        assert float((left - right).norm() / left.norm()) < 0.2


@pytest.mark.parametrize(
    ("kind", "task"), [("text", "text"), ("copa", "copa"), ("squad", "squad")], ids=["texts", "choices", "generation"]
)
def test_other_batches(calibrate: Calibrate, tmp_path: Path, kind: str, task: str) -> None:
    file = write(tmp_path / "train.jsonl", records(kind, 12))
    options = (f"--config=configs/task/{task}.yaml", f"--data.train_file={file}", "--data.batch_size=4")
    found = calibrate(*options, "--data.train_examples=null", f"--data.validation_file={file}", "--model.objective=lm")
    assert found["forwards"] == "6"  # all three batches


REFUSED = [
    (("--forwards=3",), "forwards: two batches take 4 forwards, so 3 are too few"),
    (("--data.batch_size=1000",), "the training data is one batch, and a second one must test the fit"),
    (("--data.batch_size=10000",), "train examples, fewer than"),
    (("--output=",), "output: name the file to write, as in --output jacobians.safetensors"),
    (("--output=zolit",), "output: zolit is a folder; name a file"),
    (("--output=x", "--data.train_file=none.jsonl"), "none.jsonl"),
    (("--forwards=many",), "forwards"),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refusals(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    options: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(ROOT)
    args = ["calibrate", "--config=configs/quickstart.yaml", f"--output={tmp_path / 'file'}", *QUIET, *options]
    monkeypatch.setattr(sys, "argv", ["zolit", *args])
    with pytest.raises(SystemExit) as ended:
        zolit.cli.main()
    said = str(ended.value) if isinstance(ended.value.code, str) else capsys.readouterr().err
    assert sentence in said
    assert said.strip().count("\n") == 0
    assert not (tmp_path / "file").exists()


def test_a_file_of_another_model_ends_a_fit_in_one_sentence(calibrate: Calibrate, zolit: Fit, tmp_path: Path) -> None:
    calibrate("--forwards=4")
    other, file = tmp_path / "model", tmp_path / "jacobians.safetensors"
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] += 0.5
    model.save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_text((MODEL / name).read_text())
    options = ("--config=configs/method/direct-feedback.yaml", f"--model.optimizer.init_args.jacobians={file}")
    with pytest.raises(UserError, match="measured on a model with other weights; make a file for this model"):
        zolit("fit", *options, "--trainer.max_steps=2", f"--model.name_or_path={other}")


def test_what_is_said_of_fits() -> None:
    said = described([0.5, 0.25, 0.75, 0.3])
    assert said == "median 0.400, lowest 0.250 (layer 1), highest 0.750 (layer 2)"
