"""WSC: which noun does a pronoun refer to?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from typing_extensions import override

from zolit.tasks.classification import Classification
from zolit.tasks.task import Record
from zolit.tasks.values import text_of


class WSC(Classification):
    """Winograd schemas of SuperGLUE (arXiv 1905.00537), prompts of MeZO (arXiv 2305.17333).

    Columns: text, span1_text, span2_text, label.
    """

    dataset: ClassVar[str | None] = "aps/super_glue"
    dataset_config: ClassVar[str | None] = "wsc.fixed"

    def __init__(self) -> None:
        super().__init__(
            '{text}\nIn the previous sentence, does the pronoun "{pronoun}" refer to {span1_text}? Yes or No?\n',
            {"0": "No", "1": "Yes"},
        )

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        """Returns the columns of the prompt; see ``Task.inputs``."""
        return {"WSC": ("text", "span1_text", "span2_text")}

    @override
    def values(self, record: Record) -> Mapping[str, object]:
        """Adds the field ``pronoun``, in small letters; see ``Classification.values``."""
        return {**record, "pronoun": text_of(record["span2_text"], "span2_text").lower()}
