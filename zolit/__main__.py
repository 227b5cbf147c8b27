"""``python -m zolit``."""

from zolit.cli import main

main()
