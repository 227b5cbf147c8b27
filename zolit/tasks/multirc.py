"""MultiRC: is an answer correct, given a paragraph?"""

from __future__ import annotations

from typing import ClassVar

from zolit.tasks.classification import Classification


class MultiRC(Classification):
    """MultiRC of SuperGLUE (arXiv 1905.00537), prompts of MeZO (arXiv 2305.17333).

    Columns: paragraph, question, answer, label.
    """

    dataset: ClassVar[str | None] = "aps/super_glue"
    dataset_config: ClassVar[str | None] = "multirc"

    def __init__(self) -> None:
        super().__init__(
            '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n',
            {"0": "No", "1": "Yes"},
        )
