"""Files that somebody else made run no code: configurations, checkpoints, tables, and a run's folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import QUIET, ROOT, Fit, summary
from zolit.cli import export
from zolit.cli.main import main
from zolit.cli.table.spec import read_table
from zolit.errors import UserError
from zolit.training.checkpoint_io import AtomicCheckpointIO, check_checkpoint

LAMBDA = "torch.optim.lr_scheduler.LambdaLR"
CALLBACK = "lightning.pytorch.callbacks.LambdaCallback"
LOGGER = "lightning.pytorch.loggers.TensorBoardLogger"


def error_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs the command, which must end with one sentence, and returns the sentence."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["zolit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    text = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err
    last = str(text).strip().splitlines()[-1]
    assert last.startswith("zolit: error: ")
    return last


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[[Any], str]:
    """Runs two steps with a configuration added to the quickstart's, and returns the sentence that refuses it."""

    def run(content: Any) -> str:
        file = tmp_path / "stranger.yaml"
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        options = [*QUIET, "--trainer.max_steps=2", f"--trainer.logger.init_args.save_dir={tmp_path / 'runs'}"]
        return error_of(monkeypatch, capsys, "fit", "--config=configs/quickstart.yaml", f"--config={file}", *options)

    return run


def spec(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"model": {"optimizer": spec("os.system", command="touch {}")}}, "os.system is not a class of zolit"),
        ({"model": {"optimizer": spec("subprocess.Popen", args=["touch", "{}"])}}, "subprocess.Popen is not a class"),
        ({"model": {"lr_scheduler": spec("os.system", command="touch {}")}}, "os.system is not a class"),
        ({"model": {"lr_scheduler": spec(LAMBDA, lr_lambda="os.system")}}, "os.system is not a class"),
        ({"model": {"lr_scheduler": spec(LAMBDA, lr_lambda="torch.load")}}, "load is a function"),
        ({"model": {"lr_scheduler": spec(LAMBDA, lr_lambda="torch.Tensor.add")}}, "add is a function"),
        ({"model": {"lr_scheduler": spec("torch.nn.Linear", in_features=1, out_features=1)}}, "model.lr_scheduler"),
        ({"model": {"optimizer": spec("torch.hub.load", repo_or_dir="x", model="y")}}, "model.optimizer"),
        ({"model": {"tuning": spec("os.system", command="touch {}")}}, "os.system is not a class"),
        ({"data": {"task": spec("builtins.eval")}}, "builtins.eval is not a class"),
        ({"trainer": {"callbacks": [spec(CALLBACK, on_fit_start="os.system")]}}, "os.system"),
        ({"trainer": {"callbacks": [spec(CALLBACK, on_fit_start="torch.load")]}}, "function"),
        ({"trainer": {"logger": spec("runpy.run_path", path_name="x")}}, "runpy.run_path is not a class"),
        ({"trainer": {"strategy": spec("ctypes.CDLL", name="x")}}, "ctypes.CDLL is not a class"),
        ({"model": {"trust_remote_code": True}}, "model.trust_remote_code: a configuration cannot allow"),
        ({"weights_only": False}, "weights_only: false would let a checkpoint run code"),
        ({"trainer": {"logger": spec(LOGGER, save_dir="runs", name="../up")}}, "outside"),
        ("code: [my_method.py]", "code"),
        ("a: &a [1, 2]\nb: [" + ", ".join(["*a"] * 200) + "]", "at most 100 aliases"),
        ("x: 1 # " + "y" * (1 << 20), "at most 1 MiB"),
        ("model: [", "not a YAML file"),
        ("model: '", "not a YAML file"),
    ],
)  # fmt: skip
def test_a_configuration_runs_nothing(
    refused: Callable[[Any], str], tmp_path: Path, content: Any, sentence: str
) -> None:
    proof = tmp_path / "proof"
    text = content if isinstance(content, str) else yaml.safe_dump(content).replace("{}", str(proof))
    assert sentence in refused(text)
    assert not proof.exists()


def test_the_command_line_may_trust_a_model(zolit: Fit) -> None:
    cli = zolit("fit", "--trainer.max_steps=1", "--trainer.log_every_n_steps=1", "--model.trust_remote_code=true")
    assert cli.config.fit.model.trust_remote_code


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


@pytest.fixture
def saved(zolit: Fit, tmp_path: Path) -> Path:
    """The checkpoint of a short run."""
    zolit("fit", "--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--trainer.val_check_interval=2")
    return Path(summary(tmp_path)["checkpoint"])


def is_refused(file: Path) -> bool:
    try:
        check_checkpoint(str(file))
    except UserError as error:
        return "is damaged" in str(error) or "is not a whole checkpoint" in str(error)
    return False


def test_damaged_and_evil_checkpoints_are_refused(saved: Path, tmp_path: Path) -> None:
    whole, file = saved.read_bytes(), tmp_path / "other.ckpt"
    check_checkpoint(str(saved))
    content = torch.load(saved, weights_only=True)
    refusals = 0
    for at in range(len(whole) // 20, len(whole), len(whole) // 20):
        flipped = bytearray(whole)
        flipped[at] ^= 1
        file.write_bytes(flipped)
        if not is_refused(file):  # a byte between the parts of the archive, which nobody reads
            weights = torch.load(file, weights_only=True)["state_dict"]
            assert all(torch.equal(weights[name], weight) for name, weight in content["state_dict"].items())
        else:
            refusals += 1
    assert refusals >= 15
    for bad, sentence in (
        (whole[: len(whole) // 2], "not a whole"),
        (b"", "not a whole"),
        (b"text" * 99, "not a whole"),
    ):
        file.write_bytes(bad)
        with pytest.raises(UserError, match=sentence):
            check_checkpoint(str(file))
    torch.save({"weights": 1}, file)
    with pytest.raises(UserError, match="not a checkpoint of zolit"):
        check_checkpoint(str(file))
    torch.save({**content, "payload": Evil(tmp_path / "proof")}, file)
    with pytest.raises(UserError, match="may hold code") as caught:
        check_checkpoint(str(file))
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("way", ["a file", "hpc", "export"])
def test_every_way_to_load_a_checkpoint_checks_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], saved: Path, tmp_path: Path, way: str
) -> None:
    damaged = bytearray(saved.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    folder = tmp_path / "requeued"
    folder.mkdir()
    (folder / "hpc_ckpt_1.ckpt").write_bytes(damaged)
    fit = [
        "fit",
        "--config=configs/quickstart.yaml",
        *QUIET,
        f"--trainer.logger.init_args.save_dir={tmp_path / 'again'}",
    ]
    commands = {
        "a file": [*fit, f"--ckpt_path={folder / 'hpc_ckpt_1.ckpt'}"],
        "hpc": [*fit, f"--trainer.default_root_dir={folder}", "--ckpt_path=hpc"],
        "export": ["export", f"--ckpt_path={folder / 'hpc_ckpt_1.ckpt'}", f"--output={tmp_path / 'out'}"],
    }
    config = ["--config", str(saved.parent.parent / "config.yaml")] if way == "export" else []
    said = error_of(monkeypatch, capsys, *commands[way], *config)
    assert "hpc_ckpt_1.ckpt is damaged, its part" in said


def test_loading_never_runs_code(tmp_path: Path) -> None:
    """Also where the caller allows it, as Lightning does for addresses."""
    torch.save({"state_dict": {}, "payload": Evil(tmp_path / "proof")}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="may hold code"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("path", ["http://host/x.ckpt", "https://host/x.ckpt", "s3://host/x.ckpt", "registry:model"])
def test_a_checkpoint_is_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: str) -> None:
    options = ("validate", "--config=configs/quickstart.yaml", f"--ckpt_path={path}")
    assert "is not a file; download" in error_of(monkeypatch, capsys, *options)


def test_hyper_parameters_of_a_checkpoint_are_not_read(zolit: Fit, saved: Path, tmp_path: Path) -> None:
    """LightningCLI would lay them over the command line, and load another model with its code."""
    content = torch.load(saved, weights_only=True)
    content["hyper_parameters"] = {"name_or_path": str(tmp_path), "trust_remote_code": True, "micro_batch_size": 3}
    torch.save(content, tmp_path / "stranger.ckpt")
    cli = zolit("validate", f"--ckpt_path={tmp_path / 'stranger.ckpt'}")
    assert cli.config.validate.model.name_or_path == "zolit/quickstart/model"
    assert cli.config.validate.model.micro_batch_size is None
    assert not cli.config.validate.model.trust_remote_code


def test_export_does_not_trust_a_run(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its trust_remote_code nor what its config.yaml names."""
    asked = []
    load = export.load_language_model
    monkeypatch.setattr(
        export, "load_language_model", lambda *a, **k: asked.append(k["trust_remote_code"]) or load(*a, **k)
    )
    file = saved.parent.parent / "config.yaml"
    options = yaml.safe_load(file.read_text())
    options["model"]["trust_remote_code"] = True
    file.write_text(yaml.safe_dump(options))
    export.run([f"--ckpt_path={saved}", f"--output={tmp_path / 'out'}"])
    assert asked == [False]
    options["model"]["tuning"] = spec("os.system", command=f"touch {tmp_path / 'proof'}")
    file.write_text(yaml.safe_dump(options))
    with pytest.raises((UserError, SystemExit)):
        export.run([f"--ckpt_path={saved}", f"--output={tmp_path / 'out2'}"])
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "option", ["model.trust_remote_code", "data.trust_remote_code", "code", "weights_only", "ckpt_path"]
)
@pytest.mark.parametrize("place", ["options", "grid"])
def test_a_table_cannot_allow_code(tmp_path: Path, option: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    value: Any = ["x"] if place == "grid" else "x"
    row = {"configs": ["configs/method/mezo.yaml"], place: {option: value}}
    table = {"title": "t", "tasks": {"sst2": "configs/task/sst2.yaml"}, "rows": {"row": row}}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table))
    with pytest.raises(UserError, match=f"a table cannot set {option}"):
        read_table(str(tmp_path / "table.yaml"))
