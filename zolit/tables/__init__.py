"""``zolit table``: a table of a paper, cell by cell."""

from zolit.tables.command import run

__all__ = ["run"]
