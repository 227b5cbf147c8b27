"""Pairs of sentences: does the one follow from the other?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from typing_extensions import override

from zolit.tasks.classification import Classification
from zolit.tasks.task import Record


class Entailment(Classification):
    """Records of a premise and a hypothesis; masked models see them as LM-BFF (arXiv 2012.15723) and MeZO put them.

    There the premise loses its last stop, the hypothesis begins with a small letter, and "?", the mask and a comma come
    in between.

    Args:
        template: As for Classification.
        label_words: As for Classification.
    """

    def __init__(self, template: str, label_words: dict[str, str]) -> None:
        super().__init__(template, label_words, masked_template="{cut_premise}?{mask}, {lower_hypothesis}")

    @override
    def inputs(self) -> dict[str, Sequence[str]]:
        return {type(self).__name__: ("premise", "hypothesis")}

    @override
    def values(self, record: Record) -> Mapping[str, object]:
        premise, hypothesis = str(record["premise"]).rstrip(), str(record["hypothesis"]).strip()
        cut = premise[:-1] if premise[-1:] in (".", "?", "!") else premise
        return {**record, "cut_premise": cut, "lower_hypothesis": hypothesis[:1].lower() + hypothesis[1:]}
