"""The lines of ``predictions.jsonl``: one record for each example, in the order of the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zolit.data.datamodule import PromptedData
from zolit.tasks.classification import Classification


def predictions(batches: Iterable[Mapping[str, Any]], data: PromptedData) -> Iterator[dict[str, Any]]:
    """Yields the prediction for each example.

    Args:
        batches: The results of ``predict_step``, in order.
        data: The data module of the examples.

    Yields:
        ``{"record": ..., "answer": ...}`` for a generated answer. For a plain text: the mean ``loss`` of its tokens but
        the first, their number (``tokens``), and ``perplexity``. Else the label or the chosen answer, and the
        probability of each answer. ``record`` is the number of the record in its file or split, from 1, as in messages.
    """
    task, records = data.task, data.predicted_records
    numbered = zip(records.numbers, records.rows, strict=True)
    for batch in batches:
        if "generated" in batch:
            yield from ({"record": next(numbered)[0], "answer": text} for text in batch["generated"])
            continue
        if "losses" in batch:
            columns = (batch["losses"], batch["tokens"], batch["losses"].double().exp())
            for loss, tokens, perplexity in zip(*(column.tolist() for column in columns), strict=True):
                yield {"record": next(numbered)[0], "loss": loss, "tokens": tokens, "perplexity": perplexity}
            continue
        for chosen, row in zip(batch["chosen"].tolist(), batch["probabilities"].tolist(), strict=True):
            number, record = next(numbered)
            if isinstance(task, Classification):
                names = list(task.label_words)
                shares = dict(zip(names, row, strict=True))
                yield {"record": number, "label": names[chosen], "probabilities": shares}
            else:
                answers = [answer.strip() for answer in task.question(record).answers]
                ranked = [{"answer": answer, "probability": share} for answer, share in zip(answers, row, strict=False)]
                yield {"record": number, "answer": answers[chosen], "answers": ranked}
