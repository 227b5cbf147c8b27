"""Language modelling: the likelihood of plain texts, without questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from zolit.errors import UserError
from zolit.tasks.task import Question, Record, Task
from zolit.tasks.values import text_of


class Text(Task):
    """Trains on the likelihood of whole texts: of each token but the first, given those before it.

    The loss of a text is the mean cross-entropy of its tokens. The loss of a batch is the mean over its texts, so that
    each text counts equally. val/loss is the mean over all tokens of the validation data, and val/perplexity is e to
    the power of val/loss. Packed texts are equally long, so that the two means are the same.

    Args:
        column: Column that holds the text.
        packed: Join the texts of a part of the data with the end token, and cut them into blocks of data.max_tokens
            tokens. Each block is an example. A token sees all earlier tokens of its block, and so those of other texts,
            which is the usual practice. If false, each text is an example.
    """

    metrics: ClassVar[tuple[str, ...]] = ("perplexity",)
    lower_is_better: ClassVar[bool] = True
    train_on_likelihood: ClassVar[bool] = True

    def __init__(self, column: str = "text", packed: bool = False) -> None:
        self.column = column
        self.packed = packed

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        """Returns the column of the text; see ``Task.inputs``."""
        return {"--data.task.column": (self.column,)}

    @override
    def targets(self) -> dict[str, Sequence[str]]:
        """Returns nothing, as a text has no label; see ``Task.targets``."""
        return {}

    @override
    def question(self, record: Record) -> Question:
        """Returns the text as the one answer to an empty prompt; see ``Task.question``."""
        return Question("", (self.text(record),))

    @override
    def correct_answers(self, record: Record) -> tuple[int, ...]:
        """Returns the index of the only answer, 0; see ``Task.correct_answers``."""
        return (0,)

    def text(self, record: Record) -> str:
        """Returns the text of a record.

        Raises:
            UserError: If the value is no text. The message continues after the record's name.
        """
        value = record[self.column]
        if not isinstance(value, str):
            kind = type(value).__name__
            raise UserError(
                f"has a value of type {kind} in the column {self.column!r} of --data.task.column, where a text belongs"
            )
        return text_of(value, self.column)
