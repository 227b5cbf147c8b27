"""A checkpoint under its true name is always whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, Fit, summary
from zolit.training.checkpoint_io import AtomicCheckpointIO

LARGE = """
import sys, torch
from zolit.training.checkpoint_io import AtomicCheckpointIO
io = AtomicCheckpointIO()
for index in range(10_000):
    io.save_checkpoint({"state_dict": {"w": torch.full((1_000_000,), float(index))}}, sys.argv[1])
    if not index:
        print("saved", flush=True)
"""


def load(path: Path) -> float:
    weights = torch.load(path, weights_only=True)["state_dict"]["w"]
    assert bool((weights == weights[0]).all())
    return float(weights[0])


@pytest.mark.parametrize("wait", [0.0, 0.003, 0.011, 0.05])
def test_a_process_killed_while_it_saves_leaves_a_whole_file(tmp_path: Path, wait: float) -> None:
    file = tmp_path / "last.ckpt"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "callbacks")])
    env = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", LARGE, str(file)], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "saved\n"
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    load(file)
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(3)}}, file)
    assert load(file) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]  # what was left is removed


def test_a_failed_write_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io, file = AtomicCheckpointIO(), tmp_path / "new" / "last.ckpt"
    io.save_checkpoint({"state_dict": {"w": torch.ones(3)}}, file)

    def full(content: Any, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        io.save_checkpoint({"state_dict": {"w": torch.zeros(3)}}, file)
    assert load(file) == 1.0
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]


def test_a_run_saves_so(zolit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs no folder of temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no" / "such"))
    cli = zolit("fit", "--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--trainer.val_check_interval=2")
    assert type(cli.trainer.strategy.checkpoint_io) is AtomicCheckpointIO
    assert Path(summary(tmp_path)["checkpoint"]).is_file()
