"""What is minimized, and what an evaluation looks at: losses and scores of a batch of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from zolit.language_model import LanguageModel
from zolit.tasks import AnswerBatch, Batch, PromptBatch, Task

Kind = Literal["task", "lm", "metric"]


@dataclass(frozen=True)
class Evaluated:
    """A batch that was looked at.

    Attributes:
        losses: Loss of each example, shape (batch,), float32.
        scores: Scores of each example, between 0 and 1, by name.
        chosen: Which answer was chosen, shape (batch,), int64; None where answers are written.
        right: Which answer is right, shape (batch,), int64; None where answers are written.
    """

    losses: Tensor
    scores: dict[str, list[float]]
    chosen: Tensor | None = None
    right: Tensor | None = None


class Objective:
    """The loss of each example.

    Args:
        kind: task is the cross-entropy over the answers' mean log-likelihoods or, where the task is one of language,
            minus that of the right answer; lm is the latter for every task; metric is one minus what the answer
            scores, which has no gradient.
        task: The task.
        tokenizer: The model's, where answers are written.

    Attributes:
        written: Whether answers are written rather than chosen.
    """

    def __init__(self, kind: Kind, task: Task, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.written = task.written
        self._metric = kind == "metric"
        self._as_language = kind == "lm" or (kind == "task" and task.as_language)
        self._task = task
        self._tokenizer = tokenizer

    def losses(self, language: LanguageModel, batch: Batch) -> Tensor:
        """Returns the loss of each example, shape (batch,), float32, with as little computed as it takes."""
        if isinstance(batch, PromptBatch):
            return self._of_words(language.word_logits(batch), batch)
        if self._as_language:
            return -language.answer_scores(batch.right_alone())
        if self.written:
            return self._short_of(self._judged(language, batch), batch)
        return self._of_answers(language.answer_scores(batch), batch)

    def rows(self, batch: Batch) -> Tensor | None:
        """Returns which example each row of the forward is of that ``losses`` makes, shape (rows,), int64.

        None where it makes several forwards, or examples have different numbers of rows.
        """
        if isinstance(batch, PromptBatch) or self._as_language:
            return torch.arange(len(batch.labels), device=batch.labels.device)
        return None if self.written or len(batch.owners) != batch.most * len(batch.labels) else batch.owners

    def evaluate(self, language: LanguageModel, batch: Batch) -> Evaluated:
        """Returns losses and scores."""
        if isinstance(batch, PromptBatch):
            logits = language.word_logits(batch)
            chosen = _word_table(language, batch, logits).argmax(1)
            hits = (chosen == batch.labels).tolist()
            return Evaluated(self._of_words(logits, batch), {"accuracy": hits}, chosen, batch.labels)
        if self.written:
            scores = self._judged(language, batch)
            return Evaluated(self._short_of(scores, batch) if self._metric else -language.answer_scores(batch), scores)
        found = language.answer_scores(batch, share_prompts=True)
        chosen = _answer_table(language, batch, found).argmax(1)
        hits = _hits(chosen, batch).tolist()
        return Evaluated(self._of_answers(found, batch), {"accuracy": hits}, chosen, batch.places[batch.labels])

    def table(self, language: LanguageModel, batch: Batch) -> Tensor:
        """Returns what answers are chosen by, shape (batch, answers), float32; where there is no answer it is -inf."""
        if isinstance(batch, PromptBatch):
            return _word_table(language, batch, language.word_logits(batch))
        return _answer_table(language, batch, language.answer_scores(batch, share_prompts=True))

    def write(self, language: LanguageModel, batch: AnswerBatch) -> list[str]:
        """Returns what the model writes after each prompt."""
        assert self._tokenizer is not None
        return language.write(batch, self._tokenizer, self._task.new_tokens)

    def _judged(self, language: LanguageModel, batch: AnswerBatch) -> dict[str, list[float]]:
        written = zip(self.write(language, batch), batch.accepted, strict=True)
        judged = [self._task.judge(text, accepted) for text, accepted in written]
        return {name: [scores[name] for scores in judged] for name in judged[0]}

    def _short_of(self, judged: dict[str, list[float]], batch: AnswerBatch) -> Tensor:
        """Returns what the deciding score of each written answer lacks of one."""
        scores = judged[self._task.metrics[0]]
        return 1.0 - torch.tensor(scores, dtype=torch.float32, device=batch.labels.device)

    def _of_words(self, logits: Tensor, batch: PromptBatch) -> Tensor:
        if self._as_language:
            return functional.cross_entropy(logits.float(), batch.candidates[batch.labels], reduction="none")
        words = logits[:, batch.candidates].float()
        if self._metric:
            return (words.argmax(1) != batch.labels).float()
        return functional.cross_entropy(words, batch.labels, reduction="none")

    def _of_answers(self, found: Tensor, batch: AnswerBatch) -> Tensor:
        if self._as_language:
            return -found[batch.labels]
        table = _by_prompt(found, batch)
        if self._metric:
            return 1.0 - _hits(table.argmax(1), batch).float()
        return functional.cross_entropy(table, batch.places[batch.labels], reduction="none")


def _word_table(language: LanguageModel, batch: PromptBatch, logits: Tensor) -> Tensor:
    """Returns the logits of label words, less those after bare prompts where there are any."""
    words = logits[:, batch.candidates].float()
    return words if batch.bare is None else words - _word_table(language, batch.bare, language.word_logits(batch.bare))


def _answer_table(language: LanguageModel, batch: AnswerBatch, found: Tensor) -> Tensor:
    """Returns answers' mean log-likelihoods; with bare prompts the sums, less those after them, as MeZO's code does."""
    if batch.bare is not None:
        after_nothing = language.answer_scores(batch.bare, share_prompts=True)
        found = found * batch.answer_mask.sum(1) - after_nothing * batch.bare.answer_mask.sum(1)
    return _by_prompt(found, batch)


def _by_prompt(found: Tensor, batch: AnswerBatch) -> Tensor:
    """Arranges a number for each answer by prompts, shape (batch, most); where there is no answer it is -inf."""
    table = found.new_full((len(batch.labels), batch.most), -torch.inf)
    table[batch.owners, batch.places] = found
    return table


def _hits(chosen: Tensor, batch: AnswerBatch) -> Tensor:
    """Returns whether each chosen answer is right, shape (batch,), bool."""
    table = torch.zeros(len(batch.labels), batch.most, dtype=torch.bool, device=chosen.device)
    table[batch.owners, batch.places] = batch.right
    return table.gather(1, chosen[:, None])[:, 0]
