"""Starts the processes of a run and ends them together, with one sentence, if one of them is lost."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from typing_extensions import override

from zolit.training.heartbeat import GRACE, INTERVAL, Heartbeat, LostProcessError, ended

START_PATIENCE = 300
"""Seconds that a process waits for the others at the start of a run."""

_PARENT = "ZOLIT_PARENT_PROCESS"
"""Environment variable of the processes that a launcher starts: the process that starts them."""


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher of one script a process, with a heartbeat instead of its observer.

    Lightning's observer kills the first process without a word when another one has ended.

    Attributes:
        heartbeat: What watches the other processes. The strategy starts it when the process group exists.
    """

    def __init__(self, cluster_environment: ClusterEnvironment, num_processes: int, num_nodes: int) -> None:
        super().__init__(cluster_environment, num_processes, num_nodes)
        self.heartbeat = Heartbeat(self.leave)
        self._leaving = threading.Lock()
        self._ended = threading.Event()

    @override
    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Starts the other processes, unless they run already, and calls the function; see ``_Launcher.launch``.

        Raises:
            LostProcessError: If the function fails because another process is lost.
        """
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[_PARENT] = str(os.getpid())
            self._call_children_scripts()
            threading.Thread(target=self._observe_children, daemon=True, name="zolit observer").start()
        if self.num_processes * self.num_nodes > 1:
            threading.Thread(target=self._observe_start, daemon=True, name="zolit start").start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            sentence = self.heartbeat.explain(error)
            self.heartbeat.stop(finished=False)
            self._ended.set()
            if sentence is None:
                raise
            self._kill_children()  # one that is stopped would stay
            raise LostProcessError(sentence) from error

    def leave(self, sentence: str) -> None:
        """Prints the sentence and ends this process and those that it started, whatever the main thread waits for."""
        with self._leaving:
            os.write(2, f"\nzolit: error: {sentence}\n".encode())
            self._kill_children()
            os._exit(1)

    def _kill_children(self) -> None:
        for process in self.procs:
            process.kill()

    def _observe_children(self) -> None:
        """Ends this process if one that it started fails, for instance before the processes have found each other."""
        while not self._ended.wait(INTERVAL):
            for index, process in enumerate(self.procs):
                if process.poll():
                    # This process has most likely the same error to tell.
                    if not self._ended.wait(2 * GRACE):
                        rank = self.cluster_environment.node_rank() * self.num_processes + index + 1
                        self.leave(ended(rank, self.num_processes * self.num_nodes))
                    return

    def _observe_start(self) -> None:
        """Ends this process if the heartbeat does not start, or if the process that started this one ends before."""
        size, waited = self.num_processes * self.num_nodes, 0.0
        parent = os.environ.get(_PARENT)
        is_child = parent not in (None, str(os.getpid()))
        while not self.heartbeat.started.wait(INTERVAL) and not self._ended.is_set():
            waited += INTERVAL
            if is_child and str(os.getppid()) != parent:
                self.leave(ended(0, size))
            if waited >= START_PATIENCE:
                self.leave(
                    f"the {size} processes of the run have not found each other within {START_PATIENCE} s: one was not "
                    "started, is stopped or cannot be reached; start the run again"
                )
