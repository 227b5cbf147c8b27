"""What ``zolit predict`` writes: a record for each example, in the order of the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zolit.tasks import Classification, PromptedData


def predictions(batches: Iterable[Mapping[str, Any]], data: PromptedData) -> Iterator[dict[str, Any]]:
    """Yields what is known of each example.

    Args:
        batches: What ``predict_step`` returned, in order.
        data: Where the examples are from.

    Yields:
        ``{"answer": ...}`` where it was written; else the label, or the answer chosen, and the probability of each.
    """
    task, records = data.task, iter(data.predicted_records)
    for batch in batches:
        if "written" in batch:
            yield from ({"answer": text} for text in batch["written"])
            continue
        for chosen, row in zip(batch["chosen"].tolist(), batch["probabilities"].tolist(), strict=True):
            record = next(records)
            if isinstance(task, Classification):
                names = list(task.label_words)
                yield {"label": names[chosen], "probabilities": dict(zip(names, row, strict=True))}
            else:
                answers = [answer.strip() for answer in task.question(record).answers]
                known = [{"answer": answer, "probability": share} for answer, share in zip(answers, row, strict=False)]
                yield {"answer": answers[chosen], "answers": known}
