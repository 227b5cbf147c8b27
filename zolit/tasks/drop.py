"""DROP: questions about paragraphs that need counting and comparing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from zolit.tasks.generation import Generation
from zolit.tasks.metrics import drop_scores
from zolit.tasks.task import Record
from zolit.tasks.values import texts_under


class DROP(Generation):
    """DROP (arXiv 1903.00161), with the prompts of MeZO (arXiv 2305.17333).

    As in MeZO, each span is a reference answer. The score is DROP's own F1, where MeZO uses SQuAD's.
    Columns: passage, question, answers_spans.
    """

    dataset: ClassVar[str | None] = "ucinlp/drop"

    def __init__(self) -> None:
        super().__init__("Passage: {passage}\nQuestion: {question}\nAnswer:", "answers_spans")

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        """Returns the columns of the prompt; see ``Task.inputs``."""
        return {"DROP": self.template.fields}

    @override
    def targets(self) -> dict[str, Sequence[str]]:
        """Returns the column of the answers; see ``Task.targets``."""
        return {"DROP": ("answers_spans",)}

    @override
    def references(self, record: Record) -> tuple[str, ...]:
        """Returns the spans of the answer; see ``Task.references``."""
        return texts_under(record.get("answers_spans"), "spans", "answers_spans")

    @override
    def judge(self, answer: str, references: Sequence[str]) -> dict[str, float]:
        """Returns DROP's scores, with each span as one reference; see ``Task.judge``."""
        return drop_scores(answer, [(span,) for span in references])
