"""Prompt templates: text with the names of columns in braces."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zolit.errors import UserError
from zolit.tasks.values import text_of


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with named fields, such as ``{sentence} It was``.

    Attributes:
        parts: Pairs of literal text and the column that follows it, in order; the column is None after the last text.
    """

    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str, option: str) -> Template:
        """Parses a template. ``{column}`` is a field; ``{{`` and ``}}`` are literal braces.

        Args:
            text: The template.
            option: The option that holds the template, for error messages.

        Raises:
            UserError: If the braces do not match, a field is more than a plain name, or there is no field.
        """
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UserError(f"{option}: {text!r} cannot be parsed: {error}") from None
        for _, field, spec, conversion in parsed:
            if field is not None and (not field or spec or conversion):
                raise UserError(f"{option}: {text!r} has a field with a format; write fields as plain {{column}}")
        if all(field is None for _, field, _, _ in parsed):
            raise UserError(f"{option}: {text!r} has no field; name a column in it, as in '{{sentence}} It was'")
        return cls(tuple((literal, field) for literal, field, _, _ in parsed))

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that the template names."""
        return tuple(field for _, field in self.parts if field is not None)

    def render(self, record: Mapping[str, Any]) -> str:
        """Returns the prompt of a record, which has a value for each of :attr:`fields`; values are stripped.

        Raises:
            UserError: If a value is no text and no number. The message continues after the record's name.
        """
        return "".join(
            literal + ("" if field is None else text_of(record[field], field).strip()) for literal, field in self.parts
        )
