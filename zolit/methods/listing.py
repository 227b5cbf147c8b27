"""``zolit methods``: all methods in a table, and the same table for the documents."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from zolit.methods.about import About

HEADINGS = ("method", "paper", "rooms", "forwards a step", "extra memory", "when")
WIDTH = 160


def _cells(name: str, about: About) -> tuple[str, ...]:
    """Returns what stands under the headings."""
    passes = about.forwards + (f", {about.backwards} backward" if about.backwards else "")
    return (name, about.paper, about.rooms, passes, about.memory, about.when)


def show(methods: Mapping[str, About]) -> None:
    """Prints the table, as wide as the terminal, or 160 columns where there is none."""
    table = Table(*HEADINGS, show_lines=True)
    for name, about in methods.items():
        table.add_row(*_cells(name, about))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def markdown(methods: Mapping[str, About]) -> str:
    """Returns the table in Markdown; names link to their pages, which lie beside it."""
    lines = [" | ".join(HEADINGS), " | ".join("---" for _ in HEADINGS)]
    for name, about in methods.items():
        _, *others = _cells(name, about)
        lines.append(" | ".join((f"[{name}]({about.page})", *others)))
    return "\n".join(f"| {line} |" for line in lines)
