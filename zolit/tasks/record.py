"""ReCoRD: which entity fills the gap in a sentence about a passage?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from zolit.errors import UserError
from zolit.tasks.task import Question, Record, Task

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
        passage = str(record["passage"]).replace("@highlight\n", "- ")
        filled = (str(record["query"]).replace(_GAP, entity) for entity in record["entities"])
        return Question(f"{passage}\n-", tuple(f" {sentence}" for sentence in filled))

    @override
    def correct_answers(self, record: Record) -> tuple[int, ...]:
        """Returns the indices of the entities that are answers; see ``Task.correct_answers``."""
        # Training uses the first answer. The entities may contain an answer more than once.
        entities, answers = list(record["entities"]), list(record["answers"])
        found = [index for answer in answers for index, entity in enumerate(entities) if entity == answer]
        if not found:
            raise UserError(f"has no entity that equals one of its answers {answers}")
        return tuple(dict.fromkeys(found))
