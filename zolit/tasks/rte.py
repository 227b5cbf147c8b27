"""RTE: does a sentence follow from another?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from typing_extensions import override

from zolit.tasks.classification import Classification
from zolit.tasks.entailment import with_masked_values
from zolit.tasks.task import DatasetSplits, Record


class RTE(Classification):
    """RTE of SuperGLUE (arXiv 1905.00537), prompts of MeZO (arXiv 2305.17333). Columns: premise, hypothesis, label."""

    dataset: ClassVar[str | None] = "aps/super_glue"
    dataset_config: ClassVar[str | None] = "rte"
    splits: ClassVar[DatasetSplits] = DatasetSplits("train", "train", "validation")

    def __init__(self) -> None:
        super().__init__(
            '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n',
            {"0": "Yes", "1": "No"},
            masked_template="{cut_premise}?{mask}, {lower_hypothesis}",
        )

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        return {"RTE": ("premise", "hypothesis")}

    @override
    def values(self, record: Record) -> Mapping[str, object]:
        return with_masked_values(record)
