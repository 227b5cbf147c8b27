"""``zolit methods``: prints the table of all methods; ``markdown`` returns it for the docs."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from zolit.methods import abouts
from zolit.methods.about import About

HEADINGS = ("method", "paper", "stages", "forwards per step", "extra memory", "use it when")
WIDTH = 160  # of the table in a file or a pipe


def run() -> None:
    """Prints the table of all methods."""
    show(abouts())


def _cells(name: str, about: About) -> tuple[str, ...]:
    """Returns a method's row, one text for each heading."""
    passes = about.forwards + (f", {about.backwards} backward" if about.backwards else "")
    return (name, about.paper, about.stages, passes, about.memory, about.when)


def show(methods: Mapping[str, About]) -> None:
    """Prints a table as wide as the terminal, or of 160 columns if the output is no terminal.

    Args:
        methods: Descriptions by name.
    """
    table = Table(*HEADINGS, show_lines=True)
    for name, about in methods.items():
        table.add_row(*_cells(name, about))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def markdown(methods: Mapping[str, About]) -> str:
    """Returns the table in Markdown, with a link from each name to its page, relative to ``docs/methods``.

    Args:
        methods: Descriptions by name.
    """
    lines = [" | ".join(HEADINGS), " | ".join("---" for _ in HEADINGS)]
    for name, about in methods.items():
        _, *others = _cells(name, about)
        lines.append(" | ".join((f"[{name}]({about.page})", *others)))
    return "\n".join(f"| {line} |" for line in lines)
