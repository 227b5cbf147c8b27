"""A SLURM job that is requeued at any moment ends like one that nobody disturbed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import Runs
from tests.helpers.runs import assert_equal_runs

PLACES = [
    ("import", 1),
    ("setup", 1),
    ("on_fit_start", 1),
    ("on_validation_batch_end", 1),
    ("on_train_start", 1),
    ("on_train_batch_start", 1),
    ("on_train_batch_start", 5),
    ("on_train_batch_end", 4),
    ("on_train_batch_end", 6),
    ("on_train_epoch_end", 1),
    ("on_validation_start", 3),
    ("on_validation_batch_end", 5),
    ("on_validation_batch_end", 9),
    ("on_validation_end", 3),
    ("write", 3),
    ("on_train_end", 1),
    ("on_fit_end", 1),
    ("on_validation_batch_end", 13),
    ("on_validation_end", 5),
]
SHORT = {("setup", 1), ("on_validation_batch_end", 5)}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a SLURM job, whose command ``scontrol`` records that it was asked, and stops the job."""
    command = tmp_path / "bin" / "scontrol"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\necho $@ >> {tmp_path / 'asked'}\nkill -TERM $PPID\n")
    command.chmod(0o755)
    names = {"NTASKS": "1", "JOB_ID": "17", "JOB_NAME": "test", "PROCID": "0", "LOCALID": "0"}
    return {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"} | {f"SLURM_{k}": v for k, v in names.items()}


@pytest.mark.parametrize(
    ("place", "call"), [place if place in SHORT else pytest.param(*place, marks=pytest.mark.faults) for place in PLACES]
)
def test_a_requeued_job(runs: Runs, tmp_path: Path, job: dict[str, str], place: str, call: int) -> None:
    whole = runs.whole("whole", f"--trainer.default_root_dir={tmp_path}")
    accident = {"ACCIDENT_AT": place, "ACCIDENT_CALL": str(call), "ACCIDENT_SIGNAL": str(int(signal.SIGUSR1))}
    root = f"--trainer.default_root_dir={tmp_path / 'root'}"
    first = runs.start("job", root, **job, **accident)
    status = first.wait()
    assert "Traceback" not in first.said()
    again = place not in ("on_fit_end", "on_validation_end") or status != 0
    assert status == (143 if again else 0), first.said()
    assert (tmp_path / "asked").exists() == again
    if again:
        assert (tmp_path / "asked").read_text() == "requeue 17\n"
        second = runs.start("job", root, **job)  # finds the checkpoint without an option
        assert second.wait() == 0, second.said()
    assert_equal_runs(runs.folder("job"), whole)
    assert not list((tmp_path / "root").rglob("hpc_ckpt_*"))  # another run of the same command begins anew
