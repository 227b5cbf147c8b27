"""The command ``zolit``. Each subcommand is one file or folder."""

from zolit.cli.lightning_cli import run
from zolit.cli.main import main

__all__ = ["main", "run"]
