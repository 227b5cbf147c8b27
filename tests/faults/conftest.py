"""Fixtures of the tests that disturb real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import QUIET, ROOT
from tests.helpers.fork_server import ForkServer, Process

OPTIONS = (
    "--config=configs/quickstart.yaml",
    f"--code={ROOT}/tests/helpers/accident.py",
    "--trainer.callbacks+=accident.Accident",
    "--trainer.callbacks+=EarlyStopping",
    "--trainer.callbacks.monitor=val/accuracy",
    "--trainer.callbacks.mode=max",
    "--trainer.callbacks.patience=100",
    "--data.train_examples=96",  # 6 batches an epoch
    "--data.validation_examples=40",
    "--data.eval_batch_size=16",  # 3 batches a validation
    "--trainer.max_steps=14",
    "--trainer.val_check_interval=4",
    "--trainer.log_every_n_steps=1",
    "--checkpoint.last_every_n_steps=2",
    *QUIET,
)


class Runs:
    """Starts fits below a folder."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._count = 0

    def start(self, name: str, *args: str, command: str = "fit", **env: str) -> Process:
        """Starts a command whose run lands in a folder of this name; ``env`` is added to the environment."""
        self._count += 1
        save_dir = f"--trainer.logger.init_args.save_dir={self._folder / name}"
        output = self._folder / f"{name}.{self._count}.txt"
        return self._server.start([command, *OPTIONS, save_dir, *args], output, env)

    def whole(self, name: str, *args: str) -> Path:
        """Runs a fit that nobody disturbs, once for each name, and returns its folder."""
        if not (self._folder / name).exists():
            process = self.start(name, *args)
            assert process.wait() == 0, process.said()
        return self._folder / name

    def folder(self, name: str) -> Path:
        """Returns the folder of a run."""
        return self._folder / name


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """The server, which imports zolit once."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def runs(server: ForkServer, tmp_path: Path) -> Runs:
    """Runs of one test."""
    return Runs(server, tmp_path)
