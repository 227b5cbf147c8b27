"""Sentence pairs: does the premise entail the hypothesis?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from typing_extensions import override

from zolit.tasks.classification import Classification
from zolit.tasks.task import Record
from zolit.tasks.values import text_of


class Entailment(Classification):
    """Classifies pairs of a premise and a hypothesis.

    Masked language models get the prompt of LM-BFF (arXiv 2012.15723) and MeZO: the premise without its final
    punctuation mark, "?", the mask, a comma, and the hypothesis with a small first letter.

    Args:
        template: See Classification.
        label_words: See Classification.
    """

    def __init__(self, template: str, label_words: dict[str, str]) -> None:
        super().__init__(template, label_words, masked_template="{cut_premise}?{mask}, {lower_hypothesis}")

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        """Returns the columns of the prompt; see ``Task.inputs``."""
        return {type(self).__name__: ("premise", "hypothesis")}

    @override
    def values(self, record: Record) -> Mapping[str, object]:
        """Adds the fields of the masked template; see ``Classification.values``."""
        premise, hypothesis = (text_of(record[column], column).strip() for column in ("premise", "hypothesis"))
        cut = premise[:-1] if premise[-1:] in (".", "?", "!") else premise
        return {**record, "cut_premise": cut, "lower_hypothesis": hypothesis[:1].lower() + hypothesis[1:]}
