"""BoolQ: yes-or-no questions about a passage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from typing_extensions import override

from zolit.tasks.classification import Classification
from zolit.tasks.task import Record
from zolit.tasks.values import text_of


class BoolQ(Classification):
    """BoolQ (arXiv 1905.10044), prompts of MeZO (arXiv 2305.17333). Columns: passage, question, answer."""

    dataset: ClassVar[str | None] = "google/boolq"
    dataset_config: ClassVar[str | None] = None

    def __init__(self) -> None:
        super().__init__(
            "{passage} {asked}\n",
            {"True": "Yes", "False": "No"},
            label_column="answer",
        )

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        """Returns the columns of the prompt; see ``Task.inputs``."""
        return {"BoolQ": ("passage", "question")}

    @override
    def values(self, record: Record) -> Mapping[str, object]:
        """Adds the field ``asked``: the question as a sentence with a question mark; see ``Classification.values``."""
        question = text_of(record["question"], "question")
        asked = question[:1].upper() + question[1:]
        return {**record, "asked": asked if asked.endswith("?") else asked + "?"}
