"""Handles signals during a fit only where a checkpoint resumes exactly.

A signal's handler may save a checkpoint, as Lightning's automatic requeue under SLURM does, or end the run. A
checkpoint resumes exactly if it is saved after a batch's last hook, after a batch of a validation, or after a
validation's last hook. At other times a resumed run would skip a batch that was fetched but not trained on, or repeat
one that was trained on but not yet counted. Callbacks that count validations, such as EarlyStopping, would count one
twice.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from zolit.errors import Stopped
from zolit.optim.signals import deferred_signals
from zolit.training.averaging import averaging, prepare_averaging
from zolit.training.loop_state import make_resumable, set_logged_step

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], Any]


def handle_stops(handler: Handler) -> dict[int, Handler | int | None]:
    """Installs a handler of the signals that stop a run, and returns the handlers before. Only the main thread can.

    A process that ignores SIGHUP, as under ``nohup``, goes on ignoring it.
    """
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    return {signum: signal.signal(signum, handler) for signum in STOPS if signum not in ignored}


def hold_requeue_signal() -> None:
    """Holds SLURM's requeue signal back while there is no handler, since it would end the process.

    Called at the start of a command, and when the training has ended. The module lets the signal through when Lightning
    has installed its handler, which then saves and asks for the requeue.
    """
    if SLURMEnvironment.detect():
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])


def _release_requeue_signal() -> None:
    if SLURMEnvironment.detect():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])


def leave_closed_terminal() -> None:
    """Drops what is printed from now on if the terminal is closed, since each write to it would fail."""
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


class StopRequest:
    """Handles signals that stop a run while a model is trained: notes the first signal, so that the step can end.

    A second Ctrl-C raises ``Stopped`` at once.

    Attributes:
        signum: The signal that asked to stop; None if there was none.
    """

    acts_at_once = True

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Handler | int | None] = {}

    def install(self) -> None:
        """Forgets an earlier signal, and takes the place of the handlers. Only the main thread can do this."""
        self.signum = None
        if threading.current_thread() is threading.main_thread():
            self._before = handle_stops(self)

    def uninstall(self) -> None:
        """Restores the handlers that were there before."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Notes a signal. Python calls this."""
        if self.signum is not None and signum == signal.SIGINT:
            raise Stopped(signum)
        if self.signum is None:
            self.signum = signum
            leave_closed_terminal()
            if os.environ.get("LOCAL_RANK", "0") == "0":
                # Not print: Python may be writing to the same stream when the signal arrives.
                again = " again" if signum == signal.SIGINT else ""
                os.write(2, f"\nzolit: stopping after this step; Ctrl-C{again} stops at once, unsaved\n".encode())

    def __reduce__(self) -> tuple[Any, ...]:
        return StopRequest, ()  # handlers refer to the trainer, which a copy of the module must not copy


class SignalSafeModule(LightningModule):
    """A LightningModule that handles signals during a fit only where a checkpoint resumes exactly.

    SIGINT, SIGTERM and SIGHUP end the fit with ``Stopped``, after which callbacks can save. With several processes, a
    signal to one of them ends all after the same step. Other signals reach the handlers that other code installed. The
    hooks belong to the module because Lightning calls the module's hooks after those of all callbacks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._signals = ExitStack()
        self._stop = StopRequest()
        self._validation_is_pending = False

    @override
    def configure_callbacks(self) -> list[Callback]:
        """Puts the module's callback before all others. Lightning would put it last. Prepares averages of weights."""
        prepare_averaging(self.trainer)
        known = self.trainer.callbacks  # type: ignore[attr-defined]  # set, not declared
        if not any(type(callback) is _FirstCallback for callback in known):
            known.insert(0, _FirstCallback())
        return []

    @override
    def on_train_start(self) -> None:
        """Defers signals from the start of training."""
        self._stop.install()
        _release_requeue_signal()
        self._signals.enter_context(deferred_signals())

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Handles the signals that arrived during a step."""
        self._handle()
        self._stop_if_asked(self._someone_asked())

    @override
    def on_validation_start(self) -> None:
        """Handles the signals that arrived before a validation. A checkpoint from now on repeats the validation."""
        _release_requeue_signal()
        if self.validates_a_fit:
            self._validation_is_pending = True
            self._handle()

    @override
    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Handles the signals that arrived during a batch of a validation, unless it is that of averaged weights.

        The model has the averaged weights then, and a checkpoint would take them for the current ones.
        """
        if self.validates_a_fit and not averaging(self.trainer):
            self._handle()
            if self.trainer.world_size == 1:  # several processes stop after a step, together
                self._stop_if_asked(self._stop.signum)

    @override
    def on_validation_epoch_end(self) -> None:
        """Notes that callbacks learn the result now: a checkpoint from now on does not repeat the validation."""
        self._validation_is_pending = False

    @override
    def on_validation_end(self) -> None:
        """Handles the signals that arrived while callbacks learned the result of a validation."""
        if self.validates_a_fit:
            self._handle()
            if self.trainer.world_size == 1:
                self._stop_if_asked(self._stop.signum)
        elif self.trainer.state.fn == "validate":
            hold_requeue_signal()

    @override
    def on_train_end(self) -> None:
        """Runs the handlers of deferred signals at the end of training."""
        self._signals.close()
        hold_requeue_signal()
        signum = self._someone_asked()
        self._stop.uninstall()
        self._stop_if_asked(signum)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the state of Lightning's loops exact; see ``make_resumable``."""
        make_resumable(checkpoint, self.trainer, self._validation_is_pending)

    @property
    def validates_a_fit(self) -> bool:
        """Whether the current validation belongs to a fit and is not the sanity check before it."""
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    def _handle(self) -> None:
        """Runs the handlers of deferred signals, and defers signals again."""
        self._signals.close()
        self._signals.enter_context(deferred_signals())

    def _someone_asked(self) -> int | None:
        """Returns the signal that asked any of the processes to stop. Called on all processes at the same place."""
        if self.trainer.world_size == 1:
            return self._stop.signum
        asked = torch.tensor([self._stop.signum or 0], device=self.trainer.strategy.root_device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return int(asked) or None

    def _stop_if_asked(self, signum: int | None) -> None:
        if signum is not None:
            raise Stopped(signum, resumable=True)


class _FirstCallback(Callback):
    """Does for the module what Lightning has no hook of modules for, or calls it too late."""

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        set_logged_step(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        set_logged_step(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(pl_module, SignalSafeModule):
            pl_module._stop.uninstall()
            pl_module._signals.close()
