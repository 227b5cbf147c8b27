"""The folder of a run belongs to one run alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from tests.conftest import QUIET, ROOT
from zolit.cli.lightning_cli import run
from zolit.cli.run_folder import claim, job_folder
from zolit.errors import UserError


def quiet_trainer(logger: Logger | bool, root: Path) -> Trainer:
    return Trainer(logger=logger, default_root_dir=root, accelerator="cpu", enable_progress_bar=False)


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_runs_that_begin_at_the_same_moment(tmp_path: Path, kind: type[Logger]) -> None:
    loggers = [kind(tmp_path, name="name") for _ in range(40)]  # type: ignore[call-arg]  # of both kinds
    trainers = [quiet_trainer(logger, tmp_path) for logger in loggers]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(claim, trainers))
    folders = {trainer.log_dir for trainer in trainers}
    assert folders == {str(tmp_path / "name" / f"version_{index}") for index in range(40)}


def test_runs_without_a_logger(tmp_path: Path) -> None:
    trainers = [quiet_trainer(False, tmp_path) for _ in range(3)]
    for trainer in trainers:
        claim(trainer)
    assert [trainer.log_dir for trainer in trainers] == [str(tmp_path / f"version_{index}") for index in range(3)]


def test_a_named_version_stays(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="mine")
    claim(quiet_trainer(logger, tmp_path))
    assert logger.log_dir == str(tmp_path / "mine")


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "version_0").touch()
    with pytest.raises(UserError, match="version_0 is a file"):
        claim(quiet_trainer(TensorBoardLogger(tmp_path, name=""), tmp_path))


def test_each_command_of_a_job_has_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert job_folder("runs", ["fit"]) == "runs"
    for name in ("NTASKS", "JOB_ID", "JOB_NAME", "PROCID", "LOCALID"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    folders = {job_folder("runs", ["fit", option]) for option in ("a", "b")}
    monkeypatch.setenv("SLURM_JOB_ID", "2")
    folders.add(job_folder("runs", ["fit", "a"]))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    folders.add(job_folder("runs", ["fit", "a"]))
    assert len(folders) == 4


@pytest.mark.parametrize("logger", [[], ["--trainer.logger=CSVLogger", "--trainer.logger.init_args.name=x"], ["false"]])
def test_the_root_moves_all_outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logger: list[str]) -> None:
    """Nothing is written beside the folder, neither into ``runs`` nor into the current folder."""
    logger = ["--trainer.logger=false"] if logger == ["false"] else logger
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "zolit").symlink_to(ROOT / "zolit")
    options = [
        f"--config={ROOT / 'configs/quickstart.yaml'}",
        *QUIET,
        f"--trainer.default_root_dir={tmp_path / 'root'}",
    ]
    run(["fit", *options, *logger, "--model.optimizer=MeZO", "--trainer.max_steps=2"])
    run(["predict", *options, *logger, "--ckpt_path=last", "--data.test_examples=4"])
    written = {file.name for file in (tmp_path / "root").rglob("*") if file.is_file()}
    assert {"summary.json", "last.ckpt", "best.ckpt", "predictions.jsonl"} <= written
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["zolit"]
