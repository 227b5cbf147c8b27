"""The losses that training minimizes, and the losses and scores of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase

from zolit.errors import require
from zolit.models.batches import AnswerBatch, Batch, PromptBatch, TextBatch
from zolit.models.language_model import LanguageModel
from zolit.optim.answers import Answers
from zolit.optim.collectives import Collectives
from zolit.tasks.task import Task
from zolit.tasks.text import Text

Kind = Literal["task", "lm", "metric"]


@dataclass(frozen=True)
class BatchScores:
    """Losses and scores of a batch.

    Attributes:
        losses: Loss of each example, shape (batch,), float32.
        scores: Scores of each example, between 0 and 1, by name.
        chosen: Index of the chosen answer, shape (batch,), int64; None where answers are generated.
        correct: Index of the correct answer, shape (batch,), int64; None where answers are generated.
        tokens: Number of tokens whose mean loss is the loss of each text, shape (batch,), int64; None for questions.
    """

    losses: Tensor
    scores: dict[str, list[float]]
    chosen: Tensor | None = None
    correct: Tensor | None = None
    tokens: Tensor | None = None


class Objective:
    """Computes the loss of each example of a task.

    Args:
        kind: ``task`` is the cross-entropy over the answers' mean log-likelihoods or, in tasks with
            ``train_on_likelihood``, minus the mean log-likelihood of the correct answer or of the whole text. ``lm`` is
            minus this log-likelihood for all tasks. ``metric`` is one minus the answer's score, which has no gradient.
        task: The task.
        tokenizer: The model's tokenizer; needed where answers are generated.

    Attributes:
        generates: Whether the model generates answers rather than chooses them.
        is_likelihood: Whether the losses are made of likelihoods, rather than of scores of answers.
        has_gradient: Whether the losses of training have a gradient.

    Raises:
        UserError: If the kind is ``metric`` and the task has no answers.
    """

    def __init__(self, kind: Kind, task: Task, tokenizer: PreTrainedTokenizerBase | None) -> None:
        require(
            kind != "metric" or not isinstance(task, Text),
            "model.objective: metric needs a task with answers; plain texts (zolit.tasks.Text) have none",
        )
        self.generates = task.generates
        self._metric = kind == "metric"
        self.has_gradient = not self._metric
        self.is_likelihood = not (self._metric or self.generates)
        self._train_on_likelihood = kind == "lm" or (kind == "task" and task.train_on_likelihood)
        self._task = task
        self._tokenizer = tokenizer

    def losses(self, language: LanguageModel, batch: Batch) -> Tensor:
        """Returns the loss of each example, shape (batch,), float32, with no more computation than it needs."""
        if isinstance(batch, TextBatch):
            return language.text_losses(batch)
        if isinstance(batch, PromptBatch):
            return self._word_losses(language.word_logits(batch), batch)
        if self._train_on_likelihood:
            return -language.answer_scores(batch.correct_only())
        if self.generates:
            return self._one_minus_score(self._score_generated(language, batch), batch)
        return self._answer_losses(language.answer_scores(batch), batch)

    def losses_of_parts(self, language: LanguageModel, parts: Sequence[Batch]) -> list[Tensor]:
        """Returns the losses of each part of a batch. Called in each forward of training.

        With gradients, a backward pass computes each part again. It then holds the activations of one part, and not
        those of the whole batch, for the time of one more forward.
        """
        if len(parts) == 1 or not torch.is_grad_enabled():
            return [self.losses(language, part) for part in parts]
        again = partial(checkpoint, self.losses, use_reentrant=False, preserve_rng_state=False)
        return [again(language, part) for part in parts]

    def answers(self, language: LanguageModel, batch: Batch) -> Answers:
        """Returns the correct answers of a batch. Called before a step that fits them."""
        assert isinstance(batch, PromptBatch)  # the optimizer has refused other tasks
        return Answers(batch.indices, batch.labels, language.answer_columns(batch))

    def example_of_row(self, batch: Batch, collectives: Collectives) -> Tensor:
        """Returns the example of each row in the forward that ``losses`` makes, shape (rows,), int64.

        Called before a step with per-example directions, and before one that probes the head for each row.

        Args:
            batch: The batch of this rank.
            collectives: The collectives of the run. Examples of all ranks must have equally many rows, because each row
                counts equally in the mean loss.

        Raises:
            UserError: If ``losses`` makes several forwards, or if examples have different numbers of rows. It is raised
                on all ranks, so that none waits for another.
        """
        if isinstance(batch, PromptBatch | TextBatch) or self._train_on_likelihood:
            return torch.arange(len(batch.indices), device=batch.indices.device)
        equal = len(batch.prompt_index) == batch.max_choices * len(batch.labels)
        rows = batch.max_choices if equal and not self.generates else 0
        everywhere = set(collectives.all_gather(torch.tensor([rows])).tolist())
        require(
            0 not in everywhere and len(everywhere) == 1,
            "model.optimizer: this method needs one forward with equally many rows for each example, but this task "
            "generates answers or has different numbers of answers; set model.objective lm",
        )
        return batch.prompt_index

    def evaluate(self, language: LanguageModel, batch: Batch) -> BatchScores:
        """Returns losses and scores of a batch. Called in validation and testing."""
        if isinstance(batch, TextBatch):
            return BatchScores(language.text_losses(batch), {}, tokens=batch.predicted)
        if isinstance(batch, PromptBatch):
            logits = language.word_logits(batch)
            chosen = _word_scores(language, batch, logits).argmax(1)
            hits = (chosen == batch.labels).tolist()
            return BatchScores(self._word_losses(logits, batch), {"accuracy": hits}, chosen, batch.labels)
        if self.generates:
            scores = self._score_generated(language, batch)
            losses = self._one_minus_score(scores, batch) if self._metric else -language.answer_scores(batch)
            return BatchScores(losses, scores)
        likelihoods = language.answer_scores(batch, share_prompts=True)
        chosen = _answer_scores(language, batch, likelihoods).argmax(1)
        hits = _is_correct(chosen, batch).tolist()
        correct = batch.choice_index[batch.labels]
        return BatchScores(self._answer_losses(likelihoods, batch), {"accuracy": hits}, chosen, correct)

    def choice_scores(self, language: LanguageModel, batch: PromptBatch | AnswerBatch) -> Tensor:
        """Returns the scores of all answers, shape (batch, answers), float32; -inf where there is no answer."""
        if isinstance(batch, PromptBatch):
            return _word_scores(language, batch, language.word_logits(batch))
        return _answer_scores(language, batch, language.answer_scores(batch, share_prompts=True))

    def generate(self, language: LanguageModel, batch: AnswerBatch) -> list[str]:
        """Generates an answer after each prompt."""
        assert self._tokenizer is not None
        return language.generate(batch, self._tokenizer, self._task.max_new_tokens)

    def _score_generated(self, language: LanguageModel, batch: AnswerBatch) -> dict[str, list[float]]:
        """Generates answers and returns their scores by name, one for each example."""
        answers = zip(self.generate(language, batch), batch.references, strict=True)
        scores = [self._task.judge(answer, references) for answer, references in answers]
        return {name: [own[name] for own in scores] for name in scores[0]}

    def _one_minus_score(self, scores: dict[str, list[float]], batch: AnswerBatch) -> Tensor:
        """Returns 1 - score of each generated answer, by the task's first metric, shape (batch,), float32."""
        deciding = scores[self._task.metrics[0]]
        return 1.0 - torch.tensor(deciding, dtype=torch.float32, device=batch.labels.device)

    def _word_losses(self, logits: Tensor, batch: PromptBatch) -> Tensor:
        if self._train_on_likelihood:
            return functional.cross_entropy(logits.float(), batch.candidates[batch.labels], reduction="none")
        words = logits[:, batch.candidates].float()
        if self._metric:
            return (words.argmax(1) != batch.labels).float()
        return functional.cross_entropy(words, batch.labels, reduction="none")

    def _answer_losses(self, scores: Tensor, batch: AnswerBatch) -> Tensor:
        if self._train_on_likelihood:
            return -scores[batch.labels]
        table = _to_table(scores, batch)
        if self._metric:
            return 1.0 - _is_correct(table.argmax(1), batch).float()
        return functional.cross_entropy(table, batch.choice_index[batch.labels], reduction="none")


def _word_scores(language: LanguageModel, batch: PromptBatch, logits: Tensor) -> Tensor:
    """Returns the logits of the label words, shape (batch, classes), less those after content-free prompts if any."""
    words = logits[:, batch.candidates].float()
    if batch.content_free is None:
        return words
    return words - _word_scores(language, batch.content_free, language.word_logits(batch.content_free))


def _answer_scores(language: LanguageModel, batch: AnswerBatch, scores: Tensor) -> Tensor:
    """Arranges the scores of answers, as ``_to_table`` does.

    With content-free prompts a score is the sum of log-likelihoods, less the sum after the content-free prompt, as in
    MeZO's code. Without them it is the mean log-likelihood.
    """
    if batch.content_free is not None:
        baseline = language.answer_scores(batch.content_free, share_prompts=True)
        scores = scores * batch.answer_mask.sum(1) - baseline * batch.content_free.answer_mask.sum(1)
    return _to_table(scores, batch)


def _to_table(scores: Tensor, batch: AnswerBatch) -> Tensor:
    """Arranges one number for each answer by prompts, shape (batch, max_choices); -inf where there is no answer."""
    table = scores.new_full((len(batch.labels), batch.max_choices), -torch.inf)
    table[batch.prompt_index, batch.choice_index] = scores
    return table


def _is_correct(chosen: Tensor, batch: AnswerBatch) -> Tensor:
    """Returns whether each chosen answer is correct, shape (batch,), bool."""
    table = torch.zeros(len(batch.labels), batch.max_choices, dtype=torch.bool, device=chosen.device)
    table[batch.prompt_index, batch.choice_index] = batch.is_correct
    return table.gather(1, chosen[:, None])[:, 0]
