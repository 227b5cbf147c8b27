"""CB: does the premise entail the hypothesis, contradict it, or neither?"""

from __future__ import annotations

from typing import ClassVar

from zolit.tasks.entailment import Entailment


class CB(Entailment):
    """CommitmentBank of SuperGLUE (arXiv 1905.00537), prompts of MeZO (arXiv 2305.17333).

    Columns: premise, hypothesis, label.
    """

    dataset: ClassVar[str | None] = "aps/super_glue"
    dataset_config: ClassVar[str | None] = "cb"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")

    def __init__(self) -> None:
        super().__init__(
            'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
            {"0": "Yes", "1": "No", "2": "Maybe"},
        )
