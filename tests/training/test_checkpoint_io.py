"""A checkpoint under its true name is always whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, Fit, summary
from tests.helpers.runs import assert_same
from zolit.errors import DivergedError
from zolit.training.checkpoint_io import AtomicCheckpointIO, find_fault

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


def test_a_handler_that_saves_amid_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs after the save, so that the two do not write to one temporary file."""
    io, file, save = AtomicCheckpointIO(), tmp_path / "last.ckpt", torch.save
    contents = [{"state_dict": {"w": torch.full((3,), value)}} for value in (1.0, 2.0)]

    def interrupted(content: Any, stream: Any) -> None:
        monkeypatch.setattr(torch, "save", save)
        signal.raise_signal(signal.SIGUSR1)
        assert not file.exists()
        save(content, stream)

    before = signal.signal(signal.SIGUSR1, lambda *_: io.save_checkpoint(contents[1], file))
    monkeypatch.setattr(torch, "save", interrupted)
    try:
        io.save_checkpoint(contents[0], file)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert load(file) == 2.0


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    content = {
        "state_dict": {"w": torch.randn(300), "b": torch.ones(5, dtype=torch.bfloat16)},
        "epoch": 1,
        "global_step": 7,
        "pytorch-lightning_version": "2.6",
    }
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "last.ckpt")
    whole = (tmp_path / "last.ckpt").read_bytes()
    chance, file = random.Random(0), tmp_path / "flipped.ckpt"
    refused = 0
    for _ in range(400):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        if find_fault(file) is None:
            assert_same(torch.load(file, weights_only=True), content)  # a bit that nobody reads
        else:
            refused += 1
    assert refused > 100


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    io, file = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"state_dict": {"w": torch.ones(3)}}, file)
    for value in (torch.nan, torch.inf, -torch.inf):
        spoiled = {"state_dict": {"v": torch.ones(2), "w": torch.tensor([1.0, value])}, "global_step": 5}
        with pytest.raises(DivergedError, match="after step 5, the weight w is not finite"):
            io.save_checkpoint(spoiled, file)
    assert load(file) == 1.0
