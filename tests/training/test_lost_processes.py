"""Real processes of a run: if one dies or stands still, the others end with one sentence in the stated time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import QUIET, ROOT


class Run:
    """Two real processes, and what they print."""

    def __init__(self, folder: Path, patience: int, *options: str, devices: int = 2, **variables: str) -> None:
        self.folder = folder
        folder.mkdir()
        paths = os.pathsep.join([str(ROOT), str(ROOT / "callbacks")])
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        self.env = {**env, "PATIENCE": str(patience), "FOLDER": str(folder), **variables}
        self.command = [
            *(sys.executable, str(ROOT / "tests" / "helpers" / "lost.py"), "fit", "--config=configs/quickstart.yaml"),
            *("--trainer.max_steps=100000", "--trainer.num_sanity_val_steps=0", f"--trainer.devices={devices}"),
            *(f"--trainer.logger.init_args.save_dir={folder}", *QUIET, *options),
        ]
        self.launched: list[subprocess.Popen[bytes]] = []

    def launch(self, **variables: str) -> subprocess.Popen[bytes]:
        """Starts the first process, which starts the others; or one of them, if ``variables`` say which."""
        with (self.folder / "output.txt").open("ab") as output:
            started = subprocess.Popen(
                self.command, cwd=ROOT, env=self.env | variables, stdout=output, stderr=output, start_new_session=True
            )
        self.launched.append(started)
        return started

    def processes(self, count: int = 2) -> list[psutil.Process]:
        """Waits until all processes train."""
        return [self._process(self.folder / f"rank{rank}") for rank in range(count)]

    def _process(self, path: Path) -> psutil.Process:
        deadline = time.monotonic() + 120
        while not (path.exists() and path.read_text()):
            assert time.monotonic() < deadline, self.output()
            assert all(process.poll() is None for process in self.launched), self.output()
            time.sleep(0.05)
        return psutil.Process(int(path.read_text()))

    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    def sentence(self) -> str:
        """Returns the only error, and checks that no traceback was printed."""
        said = self.output()
        assert "Traceback" not in said
        assert "frame #" not in said
        (found,) = [line for line in said.splitlines() if line.startswith("zolit: error: ")]
        return found

    def end(self) -> None:
        for process in self.launched:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(patience: int, *options: str, **variables: str) -> Run:
        runs.append(Run(tmp_path / str(len(runs)), patience, *options, **variables))
        return runs[-1]

    yield make
    for each in runs:
        each.end()


def gone(process: psutil.Process, seconds: float) -> bool:
    """Waits for the end of a process, whose parent may not have asked for its exit code."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.05)
                continue
        return True
    return False


def launch_two(started: Run) -> None:
    """Starts both processes at once, as torchrun does."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for rank in ("0", "1"):
        started.launch(**common, RANK=rank, LOCAL_RANK=rank, GROUP_RANK="0", TORCHELASTIC_RUN_ID="x")


def test_a_stopped_process_ends_the_other_one(run: Callable[..., Run]) -> None:
    started = run(2)
    launch_two(started)
    first, _ = started.processes()
    first.suspend()
    assert started.launched[1].wait(10) == 1
    assert "process 1 of 2 has not answered for 2 s" in started.sentence()


@pytest.mark.faults
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("strategy", ["replicated", "split"])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_is_noticed_in_the_stated_time(
    run: Callable[..., Run], fault: signal.Signals, strategy: str, lost: int
) -> None:
    started = run(30, f"--trainer.strategy={strategy}")
    first = started.launch()
    processes = started.processes()
    processes[lost].send_signal(fault)
    assert gone(processes[1 - lost], 10 if fault == signal.SIGKILL else 40)
    if lost == 1:
        assert first.wait(5) == 1
        assert gone(processes[1], 5)
    said = started.sentence()
    assert f"process {lost + 1} of 2 has {'ended' if fault == signal.SIGKILL else 'not answered for 30 s'}" in said


@pytest.mark.faults
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_processes_that_are_started_from_outside(run: Callable[..., Run], fault: signal.Signals, lost: int) -> None:
    started = run(5)
    launch_two(started)
    started.processes()
    started.launched[lost].send_signal(fault)
    assert started.launched[1 - lost].wait(15) == 1
    assert f"process {lost + 1} of 2 has " in started.sentence()


@pytest.mark.faults
def test_the_loss_of_one_of_three(run: Callable[..., Run]) -> None:
    started = run(30, devices=3)
    first = started.launch()
    processes = started.processes(3)
    processes[1].kill()
    assert first.wait(10) == 1
    assert gone(processes[2], 5)
    said = {line for line in started.output().splitlines() if "error" in line}
    assert len(said) == 1
    assert "process 2 of 3 has ended" in said.pop()
    assert "Traceback" not in started.output()


@pytest.mark.faults
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_lost_before_the_others_know_it(
    run: Callable[..., Run], fault: signal.Signals, lost: int
) -> None:
    started = run(30, START_PATIENCE="10")
    first = psutil.Process(started.launch().pid)
    deadline = time.monotonic() + 60
    while not (children := [child for child in first.children() if "lost.py" in " ".join(child.cmdline())]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)  # the other process is importing torch
    both = [first, children[0]]
    both[lost].send_signal(fault)
    assert gone(both[1 - lost], 40)
    said = "process {} of 2 has ended" if fault == signal.SIGKILL else "the 2 processes of the run have not found each"
    assert said.format(lost + 1) in started.sentence()


@pytest.mark.faults
def test_a_busy_process_and_a_run_that_is_stopped_as_a_whole(run: Callable[..., Run]) -> None:
    started = run(3, "--trainer.max_steps=2000", "--trainer.val_check_interval=1000", BUSY="12")
    first = started.launch()
    processes = started.processes()
    time.sleep(10)
    for process in processes:
        process.suspend()
    time.sleep(10)
    for process in processes:
        process.resume()
    assert first.wait(120) == 0, started.output()
    assert "error" not in started.output()
    assert "frame #" not in started.output()
