"""The entry point: dispatches to a subcommand and prints errors."""

from __future__ import annotations

import errno
import os
import sys
import threading
import warnings

from lightning.fabric.utilities.exceptions import MisconfigurationException

from zolit.cli import calibrate, export, methods
from zolit.cli.allocator import tune_malloc
from zolit.cli.bench import command as bench
from zolit.cli.endings import name_of, print_line, stoppable
from zolit.cli.lightning_cli import run
from zolit.cli.table import command as table
from zolit.errors import DivergedError, NonFiniteLossError, Stopped, UserError
from zolit.training.heartbeat import explain_lost_process


def main() -> None:
    """Runs the command line. Prints an error that the user can fix as one sentence, without a traceback.

    The exit status is 0 after success, 1 or 2 after an error, 130 after Ctrl-C, 143 after SIGTERM
    and 129 when the terminal is closed.
    """
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)", category=FutureWarning)
    threading.excepthook = _report_thread
    tune_malloc()
    try:
        with stoppable():
            _dispatch(sys.argv[1:])
    except Stopped as stopped:
        # The first process of a machine speaks for the others, which it stops.
        if not stopped.explained and os.environ.get("LOCAL_RANK", "0") == "0":
            print_line(f"stopped by {name_of(stopped)}; what was not finished is not saved")
        raise
    except (UserError, NonFiniteLossError, DivergedError, MisconfigurationException) as error:
        sys.exit(f"zolit: error: {error}")
    except RuntimeError as error:
        if sentence := explain_lost_process(error):
            sys.exit(f"zolit: error: {sentence}")
        raise
    except OSError as error:
        if error.strerror is None and error.errno is None:
            raise  # of a library, and not of the file system
        place = f"{error.filename}: " if error.filename else ""
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "make room, and go on with --ckpt_path last" if is_full else "name another file or folder"
        print_line(f"error: {place}{error.strerror}; {advice}")
        sys.exit(1)


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    """Leaves an error of the file system to the main thread, which meets it too; a logger writes in a thread."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def _dispatch(args: list[str]) -> None:
    match args:
        case ["bench", *options]:
            bench.run(options)
        case ["calibrate", *_]:
            calibrate.run()
        case ["methods", *_]:
            methods.run()
        case ["export", *options]:
            export.run(options)
        case ["table", *options]:
            table.run(options)
        case _:
            failure = run().failure
            if failure is not None:
                sys.exit(f"zolit: error: {failure}")
