"""The entry point: dispatches to a subcommand and prints errors."""

from __future__ import annotations

import sys
import warnings

from lightning.fabric.utilities.exceptions import MisconfigurationException

from zolit.cli import export, methods
from zolit.cli.allocator import tune_malloc
from zolit.cli.bench import command as bench
from zolit.cli.lightning_cli import run
from zolit.cli.table import command as table
from zolit.errors import NonFiniteLossError, UserError


def main() -> None:
    """Runs the command line. Prints an error that the user can fix as one sentence, without a traceback."""
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)", category=FutureWarning)
    tune_malloc()
    try:
        match sys.argv[1:]:
            case ["bench", *options]:
                bench.run(options)
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
    except (UserError, NonFiniteLossError, MisconfigurationException) as error:
        sys.exit(f"zolit: error: {error}")
