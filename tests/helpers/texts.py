"""Rows of texts of different lengths, and their losses by a plain loop over transformers' own loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from zolit.models.batches import TextBatch
from zolit.models.language_model import LanguageModel

TEXTS = [[7, 8, 9, 10, 11, 12, 13, 14, 15, 4, 5, 6, 9], [20, 21], [11, 12, 13, 14, 15, 16, 2, 3]]


def text_batch(rows: Sequence[Sequence[int]] = TEXTS, more: int = 0) -> TextBatch:
    """Returns rows as a batch, with ``more`` columns of padding than it needs."""
    width = max(map(len, rows)) + more
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return TextBatch(ids, mask, torch.arange(len(rows)))


def naive_losses(model: nn.Module, rows: Sequence[Sequence[int]] = TEXTS) -> Tensor:
    """Returns the loss that a model of transformers gives to each row alone, shape (rows,)."""
    alone = (torch.tensor([row]) for row in rows)
    return torch.stack([model(input_ids=ids, labels=ids).loss for ids in alone])


def text_losses(language: LanguageModel, batch: TextBatch) -> Callable[[], Tensor]:
    """Returns a closure: the losses of texts, whose logits are computed in pieces."""
    language.prepare_texts(batch)
    return lambda: language.text_losses(batch)
