"""A closed terminal ends a fit with a save; under ``nohup`` the fit goes on."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.conftest import OPTIONS
from zolit.training.checkpoint_io import find_fault

pytestmark = pytest.mark.faults


def start_in_terminal(folder: Path, ignored: bool) -> tuple[subprocess.Popen[bytes], int]:
    """Starts a long fit in a terminal of its own; returns the process, and the end of the terminal that is read."""

    def own_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if ignored:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    master, slave = pty.openpty()
    options = [*OPTIONS, "--trainer.max_steps=100000", "--trainer.enable_progress_bar=true"]
    process = subprocess.Popen(
        [sys.executable, "-m", "zolit", "fit", *options, f"--trainer.logger.init_args.save_dir={folder}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/callbacks", "OMP_NUM_THREADS": "1", "TERM": "xterm"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=own_terminal,  # noqa: PLW1509  # this process has no other threads that hold locks
    )
    os.close(slave)
    os.set_blocking(master, False)
    return process, master


def wait_for(holds: Callable[[], bool], terminal: int | None = None) -> None:
    """Waits, and reads what the terminal shows meanwhile: a terminal that nobody reads stops the process."""
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
        if terminal is not None:
            try:
                os.read(terminal, 1 << 16)
            except BlockingIOError:
                continue


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal(tmp_path: Path, ignored: bool) -> None:
    process, terminal = start_in_terminal(tmp_path, ignored)
    try:
        wait_for(lambda: any(tmp_path.rglob("last.ckpt")), terminal)
        (last,) = tmp_path.rglob("last.ckpt")
        os.close(terminal)
        if ignored:
            before = last.stat().st_mtime_ns
            wait_for(lambda: last.stat().st_mtime_ns > before + 10**9)
            process.terminate()
        assert process.wait(60) == (143 if ignored else 129)
        assert find_fault(last) is None
    finally:
        process.kill()
