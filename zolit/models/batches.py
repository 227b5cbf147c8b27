"""The three kinds of batch that a language model evaluates, and their division into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class PromptBatch(NamedTuple):
    """A batch of prompts whose answer is one of a few label words of one token each.

    Attributes:
        input_ids: Token ids, shape (batch, tokens), int64, padded on the left, so that the last position of each row is
            the prompt's last token.
        attention_mask: 0 on padding, else 1, shape (batch, tokens), int64.
        labels: Index of the correct answer in ``candidates``, shape (batch,), int64; -1 in prediction.
        candidates: Token id of each label word, shape (classes,), int64; the same for all examples.
        indices: Index of each example in its data set, shape (batch,), int64.
        answer_position: Position of the answer's logits, counted from the end of the row, shape (batch,), int64. It is
            -1 for causal models and the position of the mask for masked models.
        content_free: The same examples with an empty record in their prompts, in calibrated evaluations; else None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    candidates: Tensor
    indices: Tensor
    answer_position: Tensor
    content_free: PromptBatch | None = None

    def repeated(self, times: int) -> PromptBatch:
        """Returns the batch repeated along its first dimension, shape (times·batch, ...)."""
        if times == 1:
            return self
        return PromptBatch(
            self.input_ids.repeat(times, 1),
            self.attention_mask.repeat(times, 1),
            self.labels.repeat(times),
            self.candidates,
            self.indices.repeat(times),
            self.answer_position.repeat(times),
        )

    def split(self, size: int) -> Iterator[PromptBatch]:
        """Yields the batch in parts of at most ``size`` examples, in order. All parts share ``candidates``.

        Columns on the left that are padding in all rows of a part are dropped, so that no forward computes them.
        """
        width = self.input_ids.shape[1]
        # Read once for all parts: on a GPU each read synchronizes with the device.
        lengths = self.attention_mask.sum(dim=1).tolist()
        for start in range(0, len(lengths), size):
            rows = slice(start, start + size)
            columns = slice(width - max(lengths[rows]), width)
            yield PromptBatch(
                self.input_ids[rows, columns],
                self.attention_mask[rows, columns],
                self.labels[rows],
                self.candidates,
                self.indices[rows],
                self.answer_position[rows],
            )


class AnswerBatch(NamedTuple):
    """A batch of prompts, each with the answers that may follow it.

    Attributes:
        prompt_ids: Token ids, shape (batch, prompt tokens), int64, padded on the left.
        prompt_mask: 0 on padding, else 1; shape and type of ``prompt_ids``.
        answer_ids: Token ids of all answers, shape (answers, answer tokens), int64, padded on the right. The answers of
            one prompt are consecutive rows.
        answer_mask: 0 on padding, else 1; shape and type of ``answer_ids``.
        prompt_index: Row of the prompt that each answer follows, shape (answers,), int64.
        choice_index: Index of each answer among those of its prompt, from 0, shape (answers,), int64.
        is_correct: Whether each answer is correct, shape (answers,), bool; all False in prediction.
        labels: Row in ``answer_ids`` of the answer to train on, shape (batch,), int64; -1 in prediction.
        indices: Index of each example in its data set, shape (batch,), int64.
        max_choices: The largest number of answers of one prompt.
        references: For each prompt, the acceptable answers that a generated one is compared with; empty where the model
            chooses an answer.
        content_free: The same answers after prompts of an empty record, in calibrated evaluations; else None.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    answer_ids: Tensor
    answer_mask: Tensor
    prompt_index: Tensor
    choice_index: Tensor
    is_correct: Tensor
    labels: Tensor
    indices: Tensor
    max_choices: int
    references: list[list[str]]
    content_free: AnswerBatch | None = None

    def correct_only(self) -> AnswerBatch:
        """Returns the batch with one answer for each prompt: the one to train on."""
        rows = torch.arange(len(self.labels), device=self.labels.device)
        return self._replace(
            answer_ids=self.answer_ids[self.labels],
            answer_mask=self.answer_mask[self.labels],
            prompt_index=rows,
            choice_index=torch.zeros_like(rows),
            is_correct=torch.ones_like(rows, dtype=torch.bool),
            labels=rows,
            max_choices=1,
        )

    def repeated(self, times: int) -> AnswerBatch:
        """Returns the batch repeated along its first dimension."""
        if times == 1:
            return self
        batch, rows = len(self.labels), len(self.prompt_index)
        shift = torch.arange(times, device=self.labels.device)
        return self._replace(
            prompt_ids=self.prompt_ids.repeat(times, 1),
            prompt_mask=self.prompt_mask.repeat(times, 1),
            answer_ids=self.answer_ids.repeat(times, 1),
            answer_mask=self.answer_mask.repeat(times, 1),
            prompt_index=self.prompt_index.repeat(times) + batch * shift.repeat_interleave(rows),
            choice_index=self.choice_index.repeat(times),
            is_correct=self.is_correct.repeat(times),
            labels=self.labels.repeat(times) + rows * shift.repeat_interleave(batch),
            indices=self.indices.repeat(times),
            references=self.references * times,
        )

    def split(self, size: int) -> Iterator[AnswerBatch]:
        """Yields the batch in parts of at most ``size`` prompts, in order.

        Columns that are padding in all rows of a part are dropped.
        """
        # Read once for all parts: on a GPU each read synchronizes with the device.
        lengths = self.prompt_mask.sum(dim=1).tolist()
        answer_lengths, prompt_index = self.answer_mask.sum(dim=1).tolist(), self.prompt_index.tolist()
        width = self.prompt_ids.shape[1]
        for start in range(0, len(lengths), size):
            stop = min(start + size, len(lengths))
            first = next(row for row, index in enumerate(prompt_index) if index == start)
            after = next((row for row, index in enumerate(prompt_index) if index == stop), len(prompt_index))
            rows, answers = slice(start, stop), slice(first, after)
            prompt = slice(width - max(lengths[rows]), width)
            answer = slice(max(answer_lengths[answers]))
            yield self._replace(
                prompt_ids=self.prompt_ids[rows, prompt],
                prompt_mask=self.prompt_mask[rows, prompt],
                answer_ids=self.answer_ids[answers, answer],
                answer_mask=self.answer_mask[answers, answer],
                prompt_index=self.prompt_index[answers] - start,
                choice_index=self.choice_index[answers],
                is_correct=self.is_correct[answers],
                labels=self.labels[rows] - first,
                indices=self.indices[rows],
                references=self.references[rows],
            )


class TextBatch(NamedTuple):
    """A batch of texts, of which each token but the first is predicted from those before it.

    Attributes:
        input_ids: Token ids, shape (batch, tokens), int64, padded on the right. In a causal model no token sees
            later ones, so this padding is right for models without a mask, too.
        attention_mask: 0 on padding, else 1, shape (batch, tokens), int64. Each row has two tokens or more.
        indices: Index of each example in its data set, shape (batch,), int64.
    """

    input_ids: Tensor
    attention_mask: Tensor
    indices: Tensor

    @property
    def predicted(self) -> Tensor:
        """The number of tokens that are predicted in each row, shape (batch,), int64."""
        return self.attention_mask[:, 1:].sum(1)

    def repeated(self, times: int) -> TextBatch:
        """Returns the batch repeated along its first dimension, shape (times·batch, ...)."""
        if times == 1:
            return self
        return TextBatch(*(tensor.repeat(times, *[1] * (tensor.ndim - 1)) for tensor in self))

    def split(self, size: int) -> Iterator[TextBatch]:
        """Yields the batch in parts of at most ``size`` texts, in order, without columns that are all padding."""
        # Read once for all parts: on a GPU each read synchronizes with the device.
        lengths = self.attention_mask.sum(dim=1).tolist()
        for start in range(0, len(lengths), size):
            rows = slice(start, start + size)
            columns = slice(max(lengths[rows]))
            yield TextBatch(self.input_ids[rows, columns], self.attention_mask[rows, columns], self.indices[rows])


Batch = PromptBatch | AnswerBatch | TextBatch


def micro_batches(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Yields a batch in parts of at most ``size`` examples, in order.

    Args:
        batch: The batch. Its tensors are sliced, not copied.
        size: Examples in a part; None yields the whole batch.
    """
    if size is None:
        yield batch
    else:
        yield from batch.split(size)
