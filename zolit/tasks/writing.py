"""Answers that the model writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from zolit.errors import UserError
from zolit.tasks.metrics import squad_scores
from zolit.tasks.prompts import Template
from zolit.tasks.task import Question, Record, Task


class Writing(Task):
    """Questions whose answer is written, greedily, to the end of the line.

    Trained by the likelihood of the first accepted answer with the line's end after it, as in MeZO (arXiv 2305.17333);
    judged by token F1 and exact match with SQuAD's normalization.

    Args:
        template: The prompt, with columns in braces; the answer follows it after a space.
        answer_column: Column that holds the answer, or a list of answers that would do.

    Raises:
        UserError: If the template cannot be read.
    """

    metrics: ClassVar[tuple[str, ...]] = ("f1", "exact_match")
    as_language: ClassVar[bool] = True
    written: ClassVar[bool] = True

    def __init__(self, template: str = "Question: {question}\nAnswer:", answer_column: str = "answer") -> None:
        self.template = Template.parse(template, "--data.task.template")
        self.answer_column = answer_column

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        return {"--data.task.template": self.template.fields}

    @override
    def targets(self) -> dict[str, Sequence[str]]:
        return {"--data.task.answer_column": [self.answer_column]}

    @override
    def question(self, record: Record) -> Question:
        known = self.answer_column in record and record[self.answer_column] is not None
        accepted = self.accepted(record) if known else ()
        return Question(self.template.render(record), (f" {accepted[0] if accepted else ''}\n",))

    @override
    def right(self, record: Record) -> tuple[int, ...]:
        if not self.accepted(record):
            raise UserError(f"has no answer in the column {self.answer_column!r} that --data.task.answer_column names")
        return (0,)

    @override
    def accepted(self, record: Record) -> tuple[str, ...]:
        answers = record.get(self.answer_column)
        return tuple(answers) if isinstance(answers, list | tuple) else () if answers is None else (str(answers),)

    @override
    def judge(self, answer: str, accepted: Sequence[str]) -> dict[str, float]:
        return squad_scores(answer, accepted)
