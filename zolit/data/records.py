"""The records of one split; errors name the record and the column."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from zolit.errors import UserError


@dataclass(frozen=True)
class Records:
    """The records of one split.

    Attributes:
        source: Name of the records' source in messages.
        columns: Names of all columns in the source.
        rows: The records.
        numbers: Number of each record in its source, from 1.
    """

    source: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    numbers: Sequence[int]

    @classmethod
    def of(cls, source: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Records:
        """Returns all records of a source, numbered from 1.

        Raises:
            UserError: If there are none.
        """
        if not rows:
            raise UserError(f"{source} is empty: it has no records")
        return cls(source, columns, rows, range(1, len(rows) + 1))

    def name(self, index: int) -> str:
        """Returns the name of a record in messages."""
        return f"record {self.numbers[index]} of {self.source}"

    def require(self, needed: Mapping[str, Sequence[str]]) -> None:
        """Checks that each record has a value in each column that options name.

        Args:
            needed: The columns that each option names, by option.

        Raises:
            UserError: If a column is missing or there twice, or a record has no value in it.
        """
        for option, columns in needed.items():
            for column in columns:
                if column not in self.columns:
                    present = textwrap.shorten(", ".join(self.columns), 200, placeholder=" ...")
                    raise UserError(f"{option} names the column {column!r}, but {self.source} has only: {present}")
                if list(self.columns).count(column) > 1:
                    raise UserError(f"{self.source} has two columns with the name {column!r}: rename one of them")
                for index, row in enumerate(self.rows):
                    if row.get(column) is None:
                        raise UserError(f"{self.name(index)} has no value in the column {column!r} that {option} names")

    def refuse_blanks(self, columns: Collection[str]) -> None:
        """Checks that each record has something to say: a csv file has an empty cell where a value is missing.

        Args:
            columns: The columns that the prompt needs.

        Raises:
            UserError: If a record has only empty or blank texts in these columns.
        """
        for index, row in enumerate(self.rows):
            if columns and all(isinstance(row[column], str) and not row[column].strip() for column in columns):
                named = "the column " if len(columns) == 1 else "all columns of its prompt: "
                raise UserError(
                    f"{self.name(index)} has no text in {named}{', '.join(map(repr, columns))}; remove the record or"
                    " add the text"
                )

    def at_most(self, size: int | None, seed: int, option: str, skipped: int = 0) -> Records:
        """Returns ``size`` random records, or all that remain if there are not so many; see ``subset``."""
        left = len(self.rows) - skipped
        if size is None or size <= left or left < 1:
            return self.subset(size, seed, option, skipped)
        others = f", of which {skipped} are trained on; all others" if skipped else ", all"
        rank_zero_info(f"{option} asks for {size} examples; {self.source} has {len(self.rows)}{others} are taken")
        return self.subset(None, seed, option, skipped)

    def subset(self, size: int | None, seed: int, option: str, skipped: int = 0) -> Records:
        """Returns ``size`` random records, in their order. A smaller subset is part of a larger one with the same seed.

        Args:
            size: Number of records; None for all that remain.
            seed: Seed of the choice.
            option: The option that asks for the subset, for messages.
            skipped: Number of records at the start of the random order that another part of the data uses.

        Raises:
            UserError: If there are not enough records.
        """
        left = len(self.rows) - skipped
        if (size or 1) > left:
            taken = f", of which {skipped} are trained on" if skipped else ""
            raise UserError(
                f"{option} asks for {size or 1} examples, but {self.source} has only {len(self.rows)}{taken}"
            )
        order = random.Random(f"subset {seed}").sample(range(len(self.rows)), len(self.rows))
        chosen = sorted(order[skipped:][:size])
        return replace(self, rows=[self.rows[i] for i in chosen], numbers=[self.numbers[i] for i in chosen])
