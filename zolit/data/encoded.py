"""Tokenized examples in memory, and their batches: one data set for label words, one for longer answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from zolit.models.batches import AnswerBatch, PromptBatch


class EncodedPrompts(Dataset[PromptBatch]):
    """Tokenized prompts that one token answers. A list of the indices of examples returns these examples as one batch.

    Args:
        prompts: Token ids of each prompt, each of shape (tokens,), int64, not empty.
        labels: Index of each answer in ``candidates``, shape (examples,), int64.
        candidates: Token id of each label word, shape (classes,), int64.
        pad_id: Token id of padding, which the attention mask hides.
        answer_position: Position of the answer's logits in each prompt, counted from its end, shape (examples,), int64;
            None is -1 for all.
        content_free: The same examples with an empty record in their prompts, if scores are calibrated.
    """

    def __init__(
        self,
        prompts: Sequence[Tensor],
        labels: Tensor,
        candidates: Tensor,
        pad_id: int,
        answer_position: Tensor | None = None,
        content_free: EncodedPrompts | None = None,
    ) -> None:
        self.prompts = prompts
        self.labels = labels
        self.candidates = candidates
        self.pad_id = pad_id
        self.answer_position = torch.full_like(labels, -1) if answer_position is None else answer_position
        self.content_free = content_free
        self.lengths = [len(prompt) for prompt in prompts]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, indices: list[int]) -> PromptBatch:
        """Returns the examples with these indices as one batch, as wide as its longest prompt."""
        prompts = [self.prompts[i] for i in indices]
        return PromptBatch(
            pad_sequence(prompts, batch_first=True, padding_value=self.pad_id, padding_side="left"),
            pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left"),
            self.labels[indices],
            self.candidates,
            torch.tensor(indices),
            self.answer_position[indices],
            None if self.content_free is None else self.content_free[indices],
        )


class EncodedAnswers(Dataset[AnswerBatch]):
    """Tokenized prompts and their answers. A list of the indices of examples returns these examples as one batch.

    Args:
        prompts: Token ids of each prompt, each of shape (tokens,), int64, not empty.
        answers: Token ids of the answers of each prompt, each of shape (tokens,), int64, not empty.
        correct: Indices of each prompt's correct answers, the one to train on first; empty in prediction.
        references: Acceptable answers that a generated one is compared with; empty where the model chooses an answer.
        pad_id: Token id of padding, which the masks hide.
        content_free: The same answers after prompts of an empty record, if scores are calibrated.
    """

    def __init__(
        self,
        prompts: Sequence[Tensor],
        answers: Sequence[Sequence[Tensor]],
        correct: Sequence[tuple[int, ...]],
        references: Sequence[tuple[str, ...]],
        pad_id: int,
        content_free: EncodedAnswers | None = None,
    ) -> None:
        self.prompts = prompts
        self.answers = answers
        self.correct = correct
        self.references = references
        self.pad_id = pad_id
        self.content_free = content_free
        self.lengths = [
            len(prompt) + max(len(answer) for answer in own) for prompt, own in zip(prompts, answers, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, indices: list[int]) -> AnswerBatch:
        """Returns the examples with these indices as one batch."""
        prompts = [self.prompts[i] for i in indices]
        answers = [answer for i in indices for answer in self.answers[i]]
        counts = [len(self.answers[i]) for i in indices]
        starts = [sum(counts[:row]) for row in range(len(counts))]
        correct = [self.correct[i] for i in indices]
        labels = [start + own[0] if own else -1 for start, own in zip(starts, correct, strict=True)]
        prompt_index = [row for row, count in enumerate(counts) for _ in range(count)]
        choice_index = [number for count in counts for number in range(count)]
        is_correct = [number in own for own, count in zip(correct, counts, strict=True) for number in range(count)]
        return AnswerBatch(
            pad_sequence(prompts, batch_first=True, padding_value=self.pad_id, padding_side="left"),
            pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left"),
            pad_sequence(answers, batch_first=True, padding_value=self.pad_id),
            pad_sequence([torch.ones_like(a) for a in answers], batch_first=True),
            torch.tensor(prompt_index),
            torch.tensor(choice_index),
            torch.tensor(is_correct),
            torch.tensor(labels),
            torch.tensor(indices),
            max(counts),
            [list(self.references[i]) for i in indices],
            None if self.content_free is None else self.content_free[indices],
        )
