"""ReCoRD: which entity fills the gap in a sentence about a passage?"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from zolit.errors import UserError
from zolit.tasks.task import Question, Record, Task
from zolit.tasks.values import text_of, texts_of

_GAP = "@placeholder"


class ReCoRD(Task):
    """ReCoRD of SuperGLUE (arXiv 1905.00537), with the prompts of MeZO (arXiv 2305.17333).

    The whole filled sentence is scored.
    Columns: passage, query, entities, answers.
    """

    dataset: ClassVar[str | None] = "aps/super_glue"
    dataset_config: ClassVar[str | None] = "record"
    train_on_likelihood: ClassVar[bool] = True

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        """Returns the columns of the prompt; see ``Task.inputs``."""
        return {"ReCoRD": ("passage", "query", "entities")}

    @override
    def targets(self) -> dict[str, Sequence[str]]:
        """Returns the column of the answers; see ``Task.targets``."""
        return {"ReCoRD": ("answers",)}

    @override
    def question(self, record: Record) -> Question:
        """Fills the gap of the query with each entity; see ``Task.question``."""
        passage = text_of(record["passage"], "passage").replace("@highlight\n", "- ")
        query, entities = text_of(record["query"], "query"), texts_of(record["entities"], "entities")
        filled = (query.replace(_GAP, entity) for entity in entities)
        return Question(f"{passage}\n-", tuple(f" {sentence}" for sentence in filled))

    @override
    def content_free(self, record: Record) -> Record:
        """Returns the record with empty texts and no entities; see ``Task.content_free``."""
        return {**super().content_free(record), "entities": ()}

    @override
    def correct_answers(self, record: Record) -> tuple[int, ...]:
        """Returns the indices of the entities that are answers; see ``Task.correct_answers``."""
        # Training uses the first answer. The entities may contain an answer more than once.
        entities, answers = texts_of(record["entities"], "entities"), texts_of(record["answers"], "answers")
        found = [index for answer in answers for index, entity in enumerate(entities) if entity == answer]
        if not found:
            raise UserError(f"has no entity that equals one of its answers {reprlib.repr(list(answers))}")
        return tuple(dict.fromkeys(found))
