"""Places where nothing can be written: one sentence, an exit status, and every file under its name stays whole."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.conftest import OPTIONS, Runs
from tests.helpers.runs import assert_equal_runs

PLACES = [("on_train_start", 1), ("on_train_batch_end", 3), ("on_validation_end", 3), ("write", 3)]


@pytest.mark.parametrize(
    ("place", "call"),
    [place if place[0] == "write" else pytest.param(*place, marks=pytest.mark.faults) for place in PLACES],
)
def test_a_full_disk(runs: Runs, place: str, call: int) -> None:
    whole = runs.whole("whole")
    process = runs.start("full", ACCIDENT_AT=place, ACCIDENT_CALL=str(call), ACCIDENT_SIGNAL="0")
    assert process.wait() == 1, process.said()
    assert "Traceback" not in process.said()
    assert process.said().strip().splitlines()[-1].startswith("zolit: error: ")
    assert "File too large; make room, and go on with --ckpt_path last" in process.said()
    saves = list(runs.folder("full").rglob("*.ckpt"))
    again = runs.start("full", *(["--ckpt_path=last"] if saves else []))
    assert again.wait() == 0, again.said()
    assert_equal_runs(runs.folder("full"), whole)


def test_a_folder_of_runs_that_is_a_file(runs: Runs) -> None:
    runs.folder("file").touch()
    process = runs.start("file")
    assert process.wait() == 1
    assert process.said().strip().splitlines()[-1].startswith(f"zolit: error: {runs.folder('file')}")


@pytest.mark.faults
def test_a_folder_that_vanishes(runs: Runs) -> None:
    whole = runs.whole("whole")
    process = runs.start("gone", ACCIDENT_AT="on_train_batch_end", ACCIDENT_CALL="5", ACCIDENT_SIGNAL="19")  # stops
    while not (saves := list(runs.folder("gone").rglob("last.ckpt"))):
        time.sleep(0.05)
    time.sleep(1.0)
    shutil.rmtree(runs.folder("gone"))
    process.send(signal.SIGCONT)
    assert process.wait() in (0, 1), process.said()
    assert "Traceback" not in process.said()
    assert saves
    shutil.rmtree(runs.folder("gone"), ignore_errors=True)
    again = runs.start("gone")
    assert again.wait() == 0
    assert_equal_runs(runs.folder("gone"), whole)


@pytest.mark.faults
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", [("on_train_batch_start", 4), ("on_validation_batch_end", 8)])
def test_two_processes_stop_together(tmp_path: Path, place: tuple[str, int], signum: int) -> None:
    def run(name: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        save_dir = f"--trainer.logger.init_args.save_dir={tmp_path / name}"
        command = [sys.executable, "-m", "zolit", "fit", *OPTIONS, "--trainer.devices=2", save_dir, *args]
        paths = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'callbacks'}"}
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    assert run("whole").returncode == 0
    accident = {"ACCIDENT_AT": place[0], "ACCIDENT_CALL": str(place[1]), "ACCIDENT_SIGNAL": str(int(signum))}
    stopped = run("stopped", **accident)
    assert stopped.returncode == 128 + signum, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert stopped.stderr.count("zolit: stopped by") == 1
    resumed = run("stopped", "--ckpt_path=last")
    assert resumed.returncode == 0, resumed.stderr
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")
