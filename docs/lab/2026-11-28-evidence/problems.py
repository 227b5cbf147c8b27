"""The problems of the study: real sentences as classification, as text, and as a question that is answered in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zolit.data.datamodule import PromptedData
from zolit.models.batches import Batch, TextBatch
from zolit.models.language_model import LanguageModel
from zolit.models.loading import load_language_model, load_tokenizer
from zolit.models.tuning import Full, LoRA
from zolit.tasks import Classification, Generation, Task, Text
from zolit.training.objective import Objective

BATCH = 16
LONGEST = 24
"""Tokens of the longest sentence that is used; half of the sentences are shorter."""
TUNE, TEST = 200, 300
TASKS: dict[str, Task] = {
    "reviews": Classification(template="{sentence} It was"),
    "text": Text(column="sentence"),
    "writing": Generation(template="{sentence}\nThe last word of this sentence is", answer_column="last"),
}


@dataclass(frozen=True)
class Found:
    """What an evaluation found.

    Attributes:
        losses: Loss of each example, shape (examples,). Each text counts equally, as in training.
        scores: Score of each example: accuracy, exact match, or nothing for texts.
    """

    losses: Tensor
    scores: list[float]

    @property
    def loss(self) -> float:
        """The mean loss."""
        return float(self.losses.mean())

    @property
    def score(self) -> float:
        """The mean score; not a number without scores."""
        return sum(self.scores) / len(self.scores) if self.scores else float("nan")


class Problem:
    """A model and a task. Rates are chosen on ``tune``; ``test`` is looked at in the end.

    Attributes:
        unit: Floating point operations of a mean forward of 16 training examples; set by ``measure_unit``.

    Args:
        task: A name of ``TASKS``.
        folder: The model.
        train: JSON lines with the columns ``sentence`` and ``label``; the last 200 short ones are the tuning set.
        test: JSON lines with the same columns.
        work: A folder for the sentences that are used.
    """

    def __init__(self, task: str, folder: str, train: Path, test: Path, work: Path) -> None:
        self.task, self.folder = TASKS[task], folder
        self.unit = 0.0
        work.mkdir(parents=True, exist_ok=True)
        tokenizer: Any = load_tokenizer(folder, False)
        kept, held_out = (
            [with_last_word(record) for record in read(file) if len(tokenizer(record["sentence"]).input_ids) <= LONGEST]
            for file in (train, test)
        )
        parts = {"train": kept[:-TUNE], "tune": kept[-TUNE:], "test": held_out[:TEST]}
        self._files = {name: work / f"{task}-{name}.jsonl" for name in parts}
        for name, records in parts.items():
            self._files[name].write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        self.data = self._data(0)
        self.data.setup("test")
        self.data.setup("validate")
        self.objective = Objective("task", self.task, tokenizer if self.task.generates else None)

    def _data(self, seed: int) -> PromptedData:
        return PromptedData(
            name_or_path=self.folder,
            task=self.task,
            train_file=str(self._files["train"]),
            validation_file=str(self._files["tune"]),
            test_file=str(self._files["test"]),
            seed=seed,
            batch_size=BATCH,
        )

    def language(self, lora: bool, seed: int) -> LanguageModel:
        """Loads the model in bfloat16, with adapters of rank 8 in float32 if asked for."""
        torch.manual_seed(seed)
        loaded = load_language_model(
            self.folder, dtype=torch.bfloat16, attn_implementation=None, trust_remote_code=False
        )
        return LanguageModel(loaded, LoRA(seed=seed) if lora else Full())

    def batches(self, seed: int, size: int = BATCH) -> Iterator[Batch]:
        """Yields training batches without end, in an order that depends on the seed."""
        for epoch in count():
            data = self._data(1000 * seed + epoch)
            data.batch_size = size
            data.setup("fit")
            yield from data.train_dataloader()

    @torch.no_grad()
    def evaluate(self, language: LanguageModel, part: str, at_end: bool = True) -> Found:
        """Evaluates the model on ``validation`` (the tuning set) or ``test``. Answers are written at the end alone."""
        loader: Any = self.data.val_dataloader() if part == "validation" else self.data.test_dataloader()
        losses: list[Tensor] = []
        scores: list[float] = []
        for batch in loader:
            if isinstance(batch, TextBatch):
                language.prepare_texts(batch)
            if self.task.generates and not at_end:
                losses.append(self.objective.losses(language, batch))
                continue
            found = self.objective.evaluate(language, batch)
            losses.append(found.losses)
            scores += found.scores.get("accuracy", found.scores.get("exact_match", []))
        return Found(torch.cat(losses), [float(score) for score in scores])


def read(file: Path) -> list[dict[str, Any]]:
    """Returns the records of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def with_last_word(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record with its last word of letters, the answer of the writing task."""
    words = ["".join(c for c in word if c.isalpha() or c in "'-") for word in record["sentence"].split()]
    return {**record, "last": next((word for word in reversed(words) if any(map(str.isalpha, word))), "none")}
