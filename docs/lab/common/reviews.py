"""Labelled sentences as prompts, for the studies that train on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel

WORDS = (" terrible", " great")


class Reviews:
    """Labelled sentences as prompts, and the model's loss on them.

    Args:
        folder: The model's folder; its tokenizer is loaded.
        train: JSON lines with the columns ``sentence`` and ``label``.
        validation: Held-out lines with the same columns.
        model: The model that is evaluated.
        count: Number of held-out sentences.
    """

    def __init__(self, folder: str, train: Path, validation: Path, model: PreTrainedModel, count: int) -> None:
        self._count = count
        self._model = model
        # With strided inputs torch copies a frozen output head once for every example.
        model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._words = [self._tokenizer(word).input_ids[-1] for word in WORDS]
        self.train, held_out = (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in (train, validation)
        )
        self._held_out = sorted(held_out[:count], key=lambda record: len(record["sentence"]))

    def logits(self, records: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Returns the label words' logits, shape (batch, 2), float32, and the labels, shape (batch,)."""
        device = self._model.device
        texts = [f"{r['sentence']} It was" for r in records]
        batch = self._tokenizer(texts, return_tensors="pt", padding=True).to(device)
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        output = self._model(**batch, position_ids=positions, logits_to_keep=1, use_cache=False)
        return output.logits[:, -1, self._words].float(), torch.tensor([r["label"] for r in records]).to(device)

    def losses(self, records: list[dict[str, Any]]) -> Tensor:
        """Returns the loss of each example, shape (batch,)."""
        return functional.cross_entropy(*self.logits(records), reduction="none")

    @torch.no_grad()
    def held_out(self) -> tuple[float, float]:
        """Returns the mean loss and the accuracy on the held-out sentences."""
        loss = hits = 0.0
        for start in range(0, self._count, 50):
            logits, labels = self.logits(self._held_out[start : start + 50])
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
            hits += float((logits.argmax(1) == labels).sum())
        return loss / self._count, hits / self._count
