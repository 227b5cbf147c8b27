"""How a command ends when a signal stops it: exit status 130 or 143, and a line that says how to go on."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from zolit.errors import Stopped
from zolit.training.checkpoint_io import find_fault

_STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[None]:
    """Raises ``Stopped`` where SIGINT or SIGTERM arrives. Used around a whole command.

    During a fit, the module notes these signals instead, and lets the step end. When the command has been stopped, both
    signals are ignored, so that a second Ctrl-C cannot disturb the end of the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, _stop) for signum in _STOPS}
    try:
        yield
    except Stopped:
        before = dict.fromkeys(before, signal.SIG_IGN)
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Stopped(signum)


def stop_children(trainer: Trainer) -> None:
    """Ends the processes that this one started for other devices. Called when this process ends early."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(signal.SIGTERM)


def explain_stop(stopped: Stopped, trainer: Trainer, args: Sequence[str]) -> str:
    """Returns one sentence: what stopped the command, what is saved, and with which command to go on.

    Args:
        stopped: The exception.
        trainer: The trainer of the command.
        args: The arguments of the command.
    """
    name = name_of(stopped)
    save = getattr(trainer.checkpoint_callback, "last_save", None)
    step = trainer.global_step
    if trainer.state.fn != "fit" and save is None:
        return f"stopped by {name}; nothing was written"
    if save is None:
        when = f"after step {step}" if step else "before the first step"
        others = [value for option, value in _pairs(args) if option == "--ckpt_path"]
        kept = f"; {others[-1]} is unchanged" if others else ""
        return f"stopped by {name} {when}; nothing was saved{kept}"
    path, saved_at = save
    if find_fault(path) is not None:
        return f"stopped by {name} after step {step}; nothing was saved: {path} is gone or damaged"
    lost = "" if saved_at == step else f", and the {step - saved_at} steps after it are lost"
    return (
        f"stopped by {name} after step {step}; {path} has step {saved_at}{lost}; to go on: {_command(args, str(path))}"
    )


def name_of(stopped: Stopped) -> str:
    """Returns the name of the signal for the user."""
    return "Ctrl-C" if stopped.signum == signal.SIGINT else signal.Signals(stopped.signum).name


def _command(args: Sequence[str], path: str) -> str:
    kept: list[str] = []
    for option, value in _pairs(args):
        if option != "--ckpt_path":
            kept += [option] if value is None else [option, value]
    return shlex.join(["zolit", *kept, "--ckpt_path", path])


def _pairs(args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yields each argument; the value of --ckpt_path, in either of its two forms, comes together with it."""
    remaining = iter(args)
    for arg in remaining:
        option, equals, value = arg.partition("=")
        if option == "--ckpt_path":
            yield option, value if equals else next(remaining, None)
        else:
            yield arg, None


def print_line(sentence: str) -> None:
    """Writes a sentence of the command to standard error."""
    sys.stderr.write(f"zolit: {sentence}\n")
