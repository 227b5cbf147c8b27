"""COPA: which sentence is the cause, or the effect?"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from zolit.errors import UserError
from zolit.tasks.task import Question, Record, Task
from zolit.tasks.values import labels_of, text_of


class COPA(Task):
    """COPA of SuperGLUE (arXiv 1905.00537), prompts of MeZO (arXiv 2305.17333).

    Columns: premise, choice1, choice2, question, label.
    """

    dataset: ClassVar[str | None] = "aps/super_glue"
    dataset_config: ClassVar[str | None] = "copa"
    train_on_likelihood: ClassVar[bool] = True

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        """Returns the columns of the prompt; see ``Task.inputs``."""
        return {"COPA": ("premise", "choice1", "choice2", "question")}

    @override
    def targets(self) -> dict[str, Sequence[str]]:
        """Returns the column of the label; see ``Task.targets``."""
        return {"COPA": ("label",)}

    @override
    def question(self, record: Record) -> Question:
        """Joins the premise to each choice by " so" or " because"; see ``Task.question``."""
        premise = text_of(record["premise"], "premise").rstrip()
        if record["question"] not in ("cause", "effect"):
            raise UserError(f"has the question {reprlib.repr(record['question'])}, but COPA has only cause and effect")
        joined = " so" if record["question"] == "effect" else " because"
        choices = (_uncapitalize(text_of(record[name], name)) for name in ("choice1", "choice2"))
        return Question(premise.removesuffix(".") + joined, tuple(f" {choice}" for choice in choices))

    @override
    def content_free(self, record: Record) -> Record:
        """Returns the record with an empty premise; see ``Task.content_free``."""
        return {**record, "premise": ""}

    @override
    def correct_answers(self, record: Record) -> tuple[int, ...]:
        """Returns the index of the label; see ``Task.correct_answers``."""
        for label in labels_of(record["label"]):
            if label in ("0", "1"):
                return (int(label),)
        raise UserError(
            f"has the label {reprlib.repr(record['label'])}, but COPA has only 0 for choice1 and 1 for choice2"
        )


def _uncapitalize(choice: str) -> str:
    """Returns the choice with its first word in small letters; "I" stays."""
    first, space, rest = choice.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest
