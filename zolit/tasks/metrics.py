"""Scores of generated answers, and means that are exact in every precision, over all processes."""

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
    """Mean of scores between 0 and 1, over all processes.

    Sums are integers, in units of 2⁻²⁰, because Lightning casts floating-point states of metrics to bfloat16 under
    ``bf16-true``.
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
        """Adds the scores of a batch of examples."""
        self.total += sum(round(score * _UNIT) for score in scores)
        self.count += len(scores)

    @override
    def compute(self) -> Tensor:
        """Returns the mean, shape (), float32; NaN without examples."""
        return (self.total.double() / self.count / _UNIT).float()


class TokenLoss(Metric):
    """Mean loss of the tokens of texts, over all processes. Sums are integers for the reason in ``MeanScore``."""

    full_state_update = False
    total: Tensor
    count: Tensor
    broken: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count", "broken"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @override
    def update(self, losses: Tensor, tokens: Tensor) -> None:
        """Adds the texts of a batch.

        Args:
            losses: Mean loss of the tokens of each text, shape (batch,).
            tokens: Number of these tokens, shape (batch,), int64.
        """
        finite = losses.isfinite()
        self.total += (losses.where(finite, 0.0).double() * tokens * _UNIT).round().long().sum()
        self.count += tokens.sum()
        self.broken += (~finite).sum()

    @override
    def compute(self) -> Tensor:
        """Returns the mean, shape (), float32; NaN without tokens, or if the loss of a text is not finite."""
        return (self.total.double() / self.count / _UNIT).float().where(self.broken == 0, torch.nan)


class Perplexity(TokenLoss):
    """e to the power of the mean loss of the tokens of texts, over all processes."""

    @override
    def compute(self) -> Tensor:
        """Returns the perplexity, shape (), float32; NaN as ``TokenLoss.compute``."""
        return super().compute().exp()


def squad_scores(answer: str, references: Sequence[str]) -> dict[str, float]:
    """Computes exact match and token F1 as SQuAD defines them (arXiv 1606.05250), with torchmetrics.

    Case, punctuation, articles and repeated spaces are ignored. The best score over the references counts.

    Args:
        answer: The generated answer.
        references: Acceptable answers, at least one.

    Returns:
        ``f1`` and ``exact_match``, between 0 and 1.
    """
    gold: dict[str, Any] = {"answers": {"answer_start": [0] * len(references), "text": list(references)}, "id": "0"}
    found = squad({"prediction_text": answer, "id": "0"}, gold)
    return {"f1": float(found["f1"]) / 100, "exact_match": float(found["exact_match"]) / 100}


def drop_scores(answer: str, references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Computes exact match and F1 as DROP defines them (arXiv 1903.00161). The best score over the references counts.

    This differs from SQuAD in four points. Numbers are compared by value. A word with hyphens counts as several words.
    A bag of words without any of the reference's numbers scores 0. The generated answer counts as one span, even where
    a reference has several.

    Args:
        answer: The generated answer.
        references: The spans of each acceptable answer; at least one answer, each of at least one span.

    Returns:
        ``f1`` and ``exact_match``, between 0 and 1.
    """
    predicted = _drop_tokens(answer)
    scores = []
    for spans in references:
        golds = [_drop_tokens(span) for span in spans]
        best = max(_drop_f1(set(predicted), set(gold)) for gold in golds)
        scores.append((float(predicted == golds[0] and len(golds) == 1), round(best / len(golds), 2)))
    exact, f1 = max(scores)
    return {"f1": f1, "exact_match": exact}


def _drop_f1(predicted: set[str], gold: set[str]) -> float:
    """Returns the F1 of two bags of words; 0 if the reference has numbers and the answer has none of them."""
    numbers = {token for token in gold if _is_number(token)}
    if numbers and not numbers & {token for token in predicted if _is_number(token)}:
        return 0.0
    shared = len(predicted & gold)
    precision = shared / len(predicted) if predicted else 1.0
    recall = shared / len(gold) if gold else 1.0
    return 2 * precision * recall / (precision + recall) if shared or not (predicted or gold) else 0.0


def _drop_tokens(text: str) -> list[str]:
    """Splits a text into normalized words."""
    tokens = (_drop_token(token) for token in re.split(r"[ -]", text))
    return [part for token in tokens for part in token.split()]


def _drop_token(token: str) -> str:
    """Normalizes one word: case, punctuation, numbers, articles."""
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
