"""Data parallelism of two processes over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import QUIET, ROOT
from tests.helpers.examples import records
from tests.helpers.words import write

STEPS = 20


def fit(folder: Path, devices: int, batch_size: int, *args: str) -> list[dict[str, Any]]:
    """Runs a fit and returns what each rank saved."""
    done = start(folder, devices, batch_size, *args)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(devices)]


def start(folder: Path, devices: int, batch_size: int, *args: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    command = [
        sys.executable,
        str(ROOT / "tests" / "helpers" / "ranks.py"),
        str(folder),
        "fit",
        "--config=configs/quickstart.yaml",
        f"--trainer.max_steps={STEPS}",
        f"--trainer.val_check_interval={STEPS}",
        f"--trainer.devices={devices}",
        f"--data.batch_size={batch_size}",
        f"--trainer.logger.init_args.save_dir={folder}",
        *QUIET,
        *args,
    ]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "callbacks")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_two_ranks_agree_to_the_bit_through_two_floats_a_step(tmp_path: Path, precision: str) -> None:
    options = (f"--trainer.precision={precision}", "--model.optimizer.momentum=0.5")
    first, second = fit(tmp_path / "two", 2, 8, *options)
    assert first["strategy"] == "ReplicatedStrategy"
    assert first["losses"] == second["losses"]
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    assert first["in_steps"] == second["in_steps"] == [2] * STEPS
    if precision == "32-true":
        (one,) = fit(tmp_path / "one", 1, 16, *options)
        assert one["losses"] == pytest.approx(first["losses"], abs=1e-4)
        for name, weight in one["weights"].items():
            torch.testing.assert_close(weight, first["weights"][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "guided"),
    [
        ("32-true", "false"),
        ("bf16-true", "true"),
        pytest.param("32-true", "true", marks=pytest.mark.slow),
        pytest.param("bf16-true", "false", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_draw_each_others_directions(tmp_path: Path, precision: str, guided: str) -> None:
    plain = (
        "--config=configs/method/per-example.yaml",
        f"--model.optimizer.guided={guided}",
        f"--model.optimizer.lr={5e-4 if guided == 'false' else 3e-5}",
    )
    options = (f"--trainer.precision={precision}", *plain)
    first, second = fit(tmp_path / "two", 2, 8, *options)
    assert first["losses"] == second["losses"]
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    sent = first["in_steps"]
    assert sent == second["in_steps"]
    if guided == "false":
        assert sent == [1, 16, 1, 8] * STEPS  # two losses of each example, and its id, both after their number
    else:  # and the inputs that its directions are made of
        assert sent[0::6] + sent[1::6] + sent[3::6] == [1] * STEPS + [16] * STEPS + [8] * STEPS
        assert len(set(sent[5::6])) == 1
    if precision == "32-true":
        (one,) = fit(tmp_path / "one", 1, 16, *options)
        assert one["losses"] == pytest.approx(first["losses"], abs=1e-4)
        for name, weight in one["weights"].items():
            torch.testing.assert_close(weight, first["weights"][name], rtol=1e-3, atol=1e-4)


@pytest.mark.faults
@pytest.mark.parametrize(("before", "after"), [((2, 8), (1, 16)), ((1, 16), (2, 8))])
def test_a_checkpoint_resumes_on_another_number_of_ranks(
    tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    """60 batches an epoch: the run is cut in its first epoch and ends in its second."""
    options = ("--model.optimizer.momentum=0.5", "--trainer.val_check_interval=70", "--trainer.max_steps=70")
    whole, *_ = fit(tmp_path / "whole", *after, *options)
    fit(tmp_path / "cut", *before, *options, "--trainer.max_steps=50", "--trainer.val_check_interval=50")
    (last,) = (tmp_path / "cut").rglob("last.ckpt")
    resumed, *_ = fit(tmp_path / "resumed", *after, *options, f"--ckpt_path={last}")
    assert resumed["losses"] == pytest.approx(whole["losses"][50:], abs=1e-3)
    for name, weight in whole["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], weight, rtol=1e-2, atol=1e-3)
    done = start(tmp_path / "refused", after[0], 2 * after[1], *options, f"--ckpt_path={last}")
    assert done.returncode != 0
    assert "UserError: data.batch_size: a step of the checkpoint's run had 16 examples" in done.stderr
    assert f"set data.batch_size to {after[1]}" in done.stderr


def test_different_numbers_of_answers_are_refused_on_all_ranks(tmp_path: Path) -> None:
    """Two answers on one rank and three on the other: neither may wait for the losses of the other."""
    file = write(tmp_path / "data.jsonl", records("record", 24))
    options = ["--config=configs/task/record.yaml", "--config=configs/method/per-example.yaml"]
    options += [f"--data.{split}_file={file}" for split in ("train", "validation")]
    options += [f"--data.{split}_examples=24" for split in ("train", "validation")]
    done = start(tmp_path / "two", 2, 1, *options, "--model.objective=metric", "--data.batch_size=1")
    assert done.returncode != 0
    assert "UserError: model.optimizer: this method needs one forward with equally many rows" in done.stderr
    assert "RuntimeError" not in done.stderr


def test_ddp_by_name_becomes_replicated(tmp_path: Path) -> None:
    first, second = fit(tmp_path / "ddp", 2, 8, "--trainer.strategy=ddp")
    assert first["strategy"] == "ReplicatedStrategy"
    assert first["losses"] == second["losses"]
