"""What prompts of sentence pairs for masked models are made of."""

from __future__ import annotations

from collections.abc import Mapping

from zolit.tasks.task import Record


def with_masked_values(record: Record) -> Mapping[str, object]:
    """Adds the premise without its last stop and the hypothesis with a small first letter, as MeZO has them.

    (LM-BFF's, arXiv 2012.15723, to be joined by "?", the mask and a comma.)
    """
    premise, hypothesis = str(record["premise"]).rstrip(), str(record["hypothesis"]).strip()
    cut = premise[:-1] if premise[-1:] in (".", "?", "!") else premise
    return {**record, "cut_premise": cut, "lower_hypothesis": hypothesis[:1].lower() + hypothesis[1:]}
