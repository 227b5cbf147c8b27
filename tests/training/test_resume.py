"""A run that is killed and resumed from its last checkpoint ends bitwise like an uninterrupted one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import QUIET, ROOT
from tests.helpers.runs import assert_same

OPTIONS = (
    "--config=configs/quickstart.yaml",
    "--config=configs/method/curvzo.yaml",
    "--model.optimizer.momentum=0.5",
    "--data.batch_size=48",  # 20 batches an epoch: the run is killed in the second and ends in the third
    "--trainer.max_steps=45",
    "--trainer.val_check_interval=10",
    "--checkpoint.last_every_n_steps=4",
    *QUIET,
)


def start(folder: Path, *args: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "zolit", "fit", *OPTIONS, f"--trainer.logger.init_args.save_dir={folder}", *args]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "callbacks")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    folder.mkdir(exist_ok=True)
    with said(folder).open("wb") as output:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output)


def said(folder: Path) -> Path:
    return folder / "output.txt"


def last(folder: Path) -> Path:
    return folder / "quickstart" / "version_0" / "checkpoints" / "last.ckpt"


def steps(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["global_step"])


EXTRAS = [
    (),
    ("--model.optimizer.blocks=parameter", "--trainer.precision=bf16-true"),
    ("--config=configs/method/per-example.yaml", "--model.optimizer.lr=1e-4", "--trainer.precision=bf16-true"),
]


@pytest.mark.parametrize("extra", EXTRAS, ids=["curvzo", "curvzo, parameters, bf16", "per example, bf16"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, extra: tuple[str, ...]) -> None:
    whole = start(tmp_path / "whole", *extra)
    assert whole.wait() == 0, said(tmp_path / "whole").read_text()

    slow = (f"--code={ROOT}/tests/helpers/slow_down.py", "--trainer.callbacks+=slow_down.SlowDown")
    killed = start(tmp_path / "killed", *extra, *slow)
    while not last(tmp_path / "killed").exists() or steps(last(tmp_path / "killed")) < 24:
        assert killed.poll() is None, said(tmp_path / "killed").read_text()
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    saved = steps(last(tmp_path / "killed"))
    assert 24 <= saved < 40

    resumed = start(tmp_path / "resumed", *extra, f"--ckpt_path={last(tmp_path / 'killed')}")
    assert resumed.wait() == 0, said(tmp_path / "resumed").read_text()
    expected = torch.load(last(tmp_path / "whole"), weights_only=True)
    found = torch.load(last(tmp_path / "resumed"), weights_only=True)
    assert found["global_step"] == expected["global_step"] == 45
    for name, weight in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight), name
    assert_same(found["optimizer_states"][0]["zo"], expected["optimizer_states"][0]["zo"])
