"""CB: does a sentence follow from another, contradict it, or neither?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from typing_extensions import override

from zolit.tasks.classification import Classification
from zolit.tasks.entailment import with_masked_values
from zolit.tasks.task import DatasetSplits, Record


class CB(Classification):
    """CommitmentBank of SuperGLUE (arXiv 1905.00537), prompts of MeZO (arXiv 2305.17333).

    Columns: premise, hypothesis, label.
    """

    dataset: ClassVar[str | None] = "aps/super_glue"
    dataset_config: ClassVar[str | None] = "cb"
    splits: ClassVar[DatasetSplits] = DatasetSplits("train", "train", "validation")
    macro_f1: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(
            'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n',
            {"0": "Yes", "1": "No", "2": "Maybe"},
            masked_template="{cut_premise}?{mask}, {lower_hypothesis}",
        )

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        return {"CB": ("premise", "hypothesis")}

    @override
    def values(self, record: Record) -> Mapping[str, object]:
        return with_masked_values(record)
