"""How a command ends when a signal stops it: exit status 130, 143 or 129, and a line that says how to go on."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from zolit.errors import Stopped
from zolit.training.safe_points import handle_stops, leave_closed_terminal


@contextmanager
def stoppable() -> Iterator[None]:
    """Raises ``Stopped`` where SIGINT, SIGTERM or SIGHUP arrives. Used around a whole command.

    During a fit, the module notes these signals instead, and lets the step end. When the command has been stopped, they
    are ignored, so that a second Ctrl-C cannot disturb the end of the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = handle_stops(_stop)
    try:
        yield
    except Stopped:
        before = dict.fromkeys(before, signal.SIG_IGN)
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _stop(signum: int, frame: FrameType | None) -> None:
    leave_closed_terminal()
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
        kept = f"; {trainer.ckpt_path} is unchanged" if trainer.ckpt_path else ""
        return f"stopped by {name} {when}; nothing was saved{kept}"
    path, saved_at = save
    if not path.is_file():
        return f"stopped by {name} after step {step}; nothing was saved: {path} is gone"
    lost = "" if saved_at == step else f", and the {step - saved_at} steps after it are lost"
    return (
        f"stopped by {name} after step {step}; {path} has step {saved_at}{lost}; to go on: {_command(args, str(path))}"
    )


def name_of(stopped: Stopped) -> str:
    """Returns the name of the signal for the user."""
    return "Ctrl-C" if stopped.signum == signal.SIGINT else signal.Signals(stopped.signum).name


def _command(args: Sequence[str], path: str) -> str:
    kept, remaining = ["zolit"], iter(args)
    for arg in remaining:
        if arg == "--ckpt_path":
            next(remaining, None)  # its value
        elif not arg.startswith("--ckpt_path="):
            kept.append(arg)
    return shlex.join([*kept, "--ckpt_path", path])


def print_line(sentence: str) -> None:
    """Writes a sentence of the command to standard error."""
    with suppress(OSError):  # the terminal may be closed
        sys.stderr.write(f"zolit: {sentence}\n")
