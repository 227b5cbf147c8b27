"""Runs that are stopped again and again at random moments end like those that nobody disturbed."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Runs
from tests.helpers.fork_server import Process
from tests.helpers.runs import assert_equal_runs

METHODS = ["mezo", "curvzo", "per-example", "bszo", "hizoo", "lozo", "zo-act", "dizo", "first-order"]
PRECISIONS = ["32-true", "bf16-true", "bf16-mixed"]
STOPS = 4


def stop(process: Process, how: str) -> None:
    signals = {"KILL": [9], "TERM": [15], "INT": [2], "INT INT": [2, 2], "TERM INT": [15, 2]}
    for signum in signals[how]:
        process.send(signum)
        time.sleep(0.03)


@pytest.mark.faults
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_stopped_at_random(runs: Runs, tmp_path: Path, method: str, precision: str) -> None:
    options = (f"--config=configs/method/{method}.yaml", f"--trainer.precision={precision}", "--trainer.max_steps=42")
    began = time.monotonic()
    whole = runs.whole("whole", *options)
    seconds = time.monotonic() - began
    chance = random.Random(f"{method} {precision}")
    folders = {"TMPDIR": "/dev/shm" if Path("/dev/shm").is_dir() and chance.random() < 0.5 else str(tmp_path)}
    status = None
    for _ in range(STOPS):
        process = runs.start("disturbed", *resume(runs.folder("disturbed")), *options, **folders)
        time.sleep(chance.uniform(0.2, 1.0) * seconds)
        how = chance.choice(["KILL", "KILL", "TERM", "INT", "INT INT", "TERM INT"])
        stop(process, how)
        status = process.wait()
        assert status in (0, -signal.SIGKILL, 130, 143), process.said()
        assert "Traceback" not in process.said(), process.said()
        if status == 0:
            break
    if status != 0:
        process = runs.start("disturbed", *resume(runs.folder("disturbed")), *options, **folders)
        assert process.wait() == 0, process.said()
    assert_equal_runs(runs.folder("disturbed"), whole)


def resume(folder: Path) -> list[str]:
    return ["--ckpt_path=last"] if any(folder.rglob("*.ckpt")) else []
