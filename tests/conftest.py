"""Fixtures of the tests that run the command line, and cleanup after each test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.helpers.tiny import DEVICE
from zolit.cli.lightning_cli import ZolitCLI, run

ROOT = Path(__file__).parent.parent

Fit = Callable[..., ZolitCLI]


@pytest.fixture(autouse=True)
def clean_globals() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def zolit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fit:
    """Runs the command line in this process, from the root of the repository, with the quickstart's model and data.

    Arguments are those after the subcommand's ``--config configs/quickstart.yaml``; runs land in ``tmp_path``.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["zolit"])

    def call(subcommand: str, *args: str, config: str = "configs/quickstart.yaml") -> ZolitCLI:
        return run([subcommand, f"--config={config}", *QUIET, f"--trainer.logger.init_args.save_dir={tmp_path}", *args])

    return call


QUIET = (
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    f"--trainer.accelerator={DEVICE.type}",
)


def summary(folder: Path) -> dict[str, Any]:
    """Reads the summary of the only run below a folder."""
    (found,) = folder.rglob("summary.json")
    content: dict[str, Any] = json.loads(found.read_text())
    return content
