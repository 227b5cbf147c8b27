"""Questions whose answer the model generates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from zolit.errors import UserError
from zolit.tasks.metrics import squad_scores
from zolit.tasks.task import Question, Record, Task
from zolit.tasks.template import Template
from zolit.tasks.values import text_of, texts_of


class Generation(Task):
    """Asks questions whose answer the model generates greedily, up to the end of the line.

    Training maximizes the likelihood of the first reference answer followed by a line break, as in MeZO
    (arXiv 2305.17333). Scores are token F1 and exact match with SQuAD's normalization.

    Args:
        template: The prompt, with columns in braces. The answer follows it after a space.
        answer_column: Column that holds the answer, or a list of acceptable answers. The first is trained on, and has
            one line.

    Raises:
        UserError: If the template cannot be parsed.
    """

    metrics: ClassVar[tuple[str, ...]] = ("f1", "exact_match")
    train_on_likelihood: ClassVar[bool] = True
    generates: ClassVar[bool] = True

    def __init__(self, template: str = "Question: {question}\nAnswer:", answer_column: str = "answer") -> None:
        self.template = Template.parse(template, "--data.task.template")
        self.answer_column = answer_column

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        """Returns the columns of the template; see ``Task.inputs``."""
        return {"--data.task.template": self.template.fields}

    @override
    def targets(self) -> dict[str, Sequence[str]]:
        """Returns the column of the answer; see ``Task.targets``."""
        return {"--data.task.answer_column": [self.answer_column]}

    @override
    def question(self, record: Record) -> Question:
        """Returns the rendered template and the first reference answer; see ``Task.question``."""
        known = self.answer_column in record and record[self.answer_column] is not None
        references = self.references(record) if known else ()
        return Question(self.template.render(record), (f" {references[0].strip() if references else ''}\n",))

    @override
    def correct_answers(self, record: Record) -> tuple[int, ...]:
        """Returns the index of the only answer, 0; see ``Task.correct_answers``."""
        references = self.references(record)
        if not references or not references[0].strip():
            raise UserError(f"has no answer in the column {self.answer_column!r} of --data.task.answer_column")
        if len(references[0].strip().splitlines()) > 1:
            raise UserError(
                f"has an answer with a line break in the column {self.answer_column!r} of --data.task.answer_column;"
                " answers are written up to the end of the line, so write it in one line"
            )
        return (0,)

    @override
    def references(self, record: Record) -> tuple[str, ...]:
        """Returns the answers in the column of the answer; see ``Task.references``."""
        answers = record.get(self.answer_column)
        if answers is None:
            return ()
        several = isinstance(answers, list | tuple)
        return texts_of(answers, self.answer_column) if several else (text_of(answers, self.answer_column),)

    @override
    def judge(self, answer: str, references: Sequence[str]) -> dict[str, float]:
        """Returns SQuAD's scores; see ``Task.judge``."""
        return squad_scores(answer, references)
