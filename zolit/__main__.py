"""Runs the command line as ``python -m zolit``."""

from zolit.cli.main import main

main()
