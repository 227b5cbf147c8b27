"""Multiple choice: each record has its own answers."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from zolit.errors import UserError
from zolit.tasks.task import Question, Record, Task
from zolit.tasks.template import Template
from zolit.tasks.values import labels_of, text_of


class MultipleChoice(Task):
    """Asks which of several columns continues a prompt best.

    The answer is the choice with the highest mean log-likelihood of its tokens.

    Args:
        template: The prompt, with columns in braces. A choice follows it after a space.
        choices: The columns that hold the choices.
        label_column: Column that holds the correct choice, as a number from 0 or as the name of the choice's column.

    Raises:
        UserError: If the template cannot be parsed, or there are fewer than two choices.
    """

    train_on_likelihood: ClassVar[bool] = True

    def __init__(self, template: str, choices: list[str], label_column: str = "label") -> None:
        self.template = Template.parse(template, "--data.task.template")
        if len(choices) < 2:
            raise UserError(f"--data.task.choices: name at least two columns, not {len(choices)}")
        self.choices = choices
        self.label_column = label_column

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        """Returns the columns of the template and of the choices; see ``Task.inputs``."""
        return {"--data.task.template": self.template.fields, "--data.task.choices": self.choices}

    @override
    def targets(self) -> dict[str, Sequence[str]]:
        """Returns the column of the label; see ``Task.targets``."""
        return {"--data.task.label_column": [self.label_column]}

    @override
    def question(self, record: Record) -> Question:
        """Returns the rendered template and the choices; see ``Task.question``."""
        choices = (text_of(record[column], column) for column in self.choices)
        return Question(self.template.render(record), tuple(f" {choice}" for choice in choices))

    @override
    def correct_answers(self, record: Record) -> tuple[int, ...]:
        """Returns the index of the correct choice; see ``Task.correct_answers``."""
        labels = labels_of(record[self.label_column])
        names = [*self.choices, *(str(number) for number in range(len(self.choices)))]
        for label in labels:
            if label in names:
                return (names.index(label) % len(self.choices),)
        raise UserError(
            f"has the label {reprlib.repr(labels[0])}, but --data.task.choices allows only {', '.join(names)}"
        )
