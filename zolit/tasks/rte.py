"""RTE: does the premise entail the hypothesis?"""

from __future__ import annotations

from typing import ClassVar

from zolit.tasks.entailment import Entailment


class RTE(Entailment):
    """RTE of SuperGLUE (arXiv 1905.00537), prompts of MeZO (arXiv 2305.17333). Columns: premise, hypothesis, label."""

    dataset: ClassVar[str | None] = "aps/super_glue"
    dataset_config: ClassVar[str | None] = "rte"

    def __init__(self) -> None:
        super().__init__(
            '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n',
            {"0": "Yes", "1": "No"},
        )
