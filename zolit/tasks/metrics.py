"""How written answers are scored, and means of scores that stay exact in every precision."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import squad
from typing_extensions import override

_UNIT = 1 << 20


class MeanScore(Metric):
    """The mean of scores between 0 and 1, over all processes.

    In whole numbers, of a millionth: the states of metrics that are not become bfloat16 under ``bf16-true``.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @override
    def update(self, scores: Sequence[float]) -> None:
        """Takes in the scores of some examples."""
        self.total += sum(round(score * _UNIT) for score in scores)
        self.count += len(scores)

    @override
    def compute(self) -> Tensor:
        """Returns the mean, shape (), float32; NaN where there were none."""
        return (self.total.double() / self.count / _UNIT).float()


def squad_scores(answer: str, accepted: Sequence[str]) -> dict[str, float]:
    """Exact match and token F1 by the definition of SQuAD (arXiv 1606.05250), by torchmetrics; the best counts.

    Case, punctuation, articles and repeated spaces do not matter.

    Args:
        answer: What was written.
        accepted: Answers of which each would do, at least one.
    """
    gold: dict[str, Any] = {"answers": {"answer_start": [0] * len(accepted), "text": list(accepted)}, "id": "0"}
    found = squad({"prediction_text": answer, "id": "0"}, gold)
    return {"f1": float(found["f1"]) / 100, "exact_match": float(found["exact_match"]) / 100}


def drop_scores(answer: str, accepted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 by the definition of DROP (arXiv 1903.00161): the best accepted answer counts.

    As for SQuAD, but numbers are compared by value, words with hyphens are several, a bag of words that lacks all of
    the gold one's numbers scores 0, and where an accepted answer is several spans, what is written counts as one.

    Args:
        answer: What was written.
        accepted: The spans of each answer that would do; at least one of at least one.
    """
    written = _drop_tokens(answer)
    scores = []
    for spans in accepted:
        golds = [_drop_tokens(span) for span in spans]
        best = max(_drop_f1(set(written), set(gold)) for gold in golds)
        scores.append((float(written == golds[0] and len(golds) == 1), round(best / len(golds), 2)))
    exact, f1 = max(scores)
    return {"f1": f1, "exact_match": exact}


def _drop_f1(written: set[str], gold: set[str]) -> float:
    numbers = {token for token in gold if _is_number(token)}
    if numbers and not numbers & {token for token in written if _is_number(token)}:
        return 0.0
    shared = len(written & gold)
    precision = shared / len(written) if written else 1.0
    recall = shared / len(gold) if gold else 1.0
    return 2 * precision * recall / (precision + recall) if shared or not (written or gold) else 0.0


def _drop_tokens(text: str) -> list[str]:
    """Returns the normalized words."""
    tokens = (_drop_token(token) for token in re.split(r"[ -]", text))
    return [part for token in tokens for part in token.split()]


def _drop_token(token: str) -> str:
    token = token.lower()
    if not _is_number(token):
        token = "".join(letter for letter in token if letter not in string.punctuation)
    if _is_number(token):
        token = str(float(token))
    return re.sub(r"\b(a|an|the)\b", " ", token)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
