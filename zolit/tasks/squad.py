"""SQuAD: questions about paragraphs, answered in the paragraphs' words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from zolit.tasks.generation import Generation
from zolit.tasks.task import Record
from zolit.tasks.values import texts_under


class SQuAD(Generation):
    """SQuAD 1.1 (arXiv 1606.05250), prompts of MeZO (arXiv 2305.17333). Columns: title, context, question, answers."""

    dataset: ClassVar[str | None] = "rajpurkar/squad"

    def __init__(self) -> None:
        super().__init__("Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:", "answers")

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        """Returns the columns of the prompt; see ``Task.inputs``."""
        return {"SQuAD": self.template.fields}

    @override
    def targets(self) -> dict[str, Sequence[str]]:
        """Returns the column of the answers; see ``Task.targets``."""
        return {"SQuAD": ("answers",)}

    @override
    def references(self, record: Record) -> tuple[str, ...]:
        """Returns the texts of the answers; see ``Task.references``."""
        return texts_under(record.get("answers"), "text", "answers")
