"""The batch of tasks whose answers are longer than a token, and how it is padded and cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset


class AnswerBatch(NamedTuple):
    """A batch of prompts, each with the answers that may follow it.

    Attributes:
        prompt_ids: Token ids, shape (batch, prompt tokens), int64, padded on the left.
        prompt_mask: 0 on padding, else 1; shape and type of ``prompt_ids``.
        answer_ids: Token ids of all answers, shape (answers, answer tokens), int64, padded on the right; those of one
            prompt follow one another.
        answer_mask: 0 on padding, else 1; shape and type of ``answer_ids``.
        owners: Which prompt each answer follows, shape (answers,), int64.
        places: Which of its prompt's answers each is, shape (answers,), int64.
        right: Whether each answer is right, shape (answers,), bool; all False in prediction.
        labels: The answer to train on, as an index into ``answer_ids``, shape (batch,), int64; -1 in prediction.
        indices: Where each example stands in its dataset, shape (batch,), int64.
        most: The largest number of answers that a prompt has.
        accepted: The texts that a written answer is judged by, for each prompt; empty where answers are chosen.
        bare: The same answers after prompts with nothing in them, in evaluations that are calibrated; else None.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    answer_ids: Tensor
    answer_mask: Tensor
    owners: Tensor
    places: Tensor
    right: Tensor
    labels: Tensor
    indices: Tensor
    most: int
    accepted: list[list[str]]
    bare: AnswerBatch | None = None

    def right_alone(self) -> AnswerBatch:
        """Returns the batch with the answer to train on as each prompt's only one."""
        everyone = torch.arange(len(self.labels), device=self.labels.device)
        return self._replace(
            answer_ids=self.answer_ids[self.labels],
            answer_mask=self.answer_mask[self.labels],
            owners=everyone,
            places=torch.zeros_like(everyone),
            right=torch.ones_like(everyone, dtype=torch.bool),
            labels=everyone,
            most=1,
        )

    def repeated(self, copies: int) -> AnswerBatch:
        """Returns the batch so many times in a row."""
        if copies == 1:
            return self
        batch, rows = len(self.labels), len(self.owners)
        shift = torch.arange(copies, device=self.labels.device)
        return self._replace(
            prompt_ids=self.prompt_ids.repeat(copies, 1),
            prompt_mask=self.prompt_mask.repeat(copies, 1),
            answer_ids=self.answer_ids.repeat(copies, 1),
            answer_mask=self.answer_mask.repeat(copies, 1),
            owners=self.owners.repeat(copies) + batch * shift.repeat_interleave(rows),
            places=self.places.repeat(copies),
            right=self.right.repeat(copies),
            labels=self.labels.repeat(copies) + rows * shift.repeat_interleave(batch),
            indices=self.indices.repeat(copies),
            accepted=self.accepted * copies,
        )

    def pieces(self, size: int) -> Iterator[AnswerBatch]:
        """Cuts the batch into pieces of at most ``size`` prompts, in order, without columns that are all padding."""
        # Once for all pieces: on a GPU each read waits for the device.
        lengths = self.prompt_mask.sum(dim=1).tolist()
        answer_lengths, owners = self.answer_mask.sum(dim=1).tolist(), self.owners.tolist()
        width = self.prompt_ids.shape[1]
        for start in range(0, len(lengths), size):
            stop = min(start + size, len(lengths))
            first = next(row for row, owner in enumerate(owners) if owner == start)
            after = next((row for row, owner in enumerate(owners) if owner == stop), len(owners))
            rows, answers = slice(start, stop), slice(first, after)
            prompt = slice(width - max(lengths[rows]), width)
            answer = slice(max(answer_lengths[answers]))
            yield self._replace(
                prompt_ids=self.prompt_ids[rows, prompt],
                prompt_mask=self.prompt_mask[rows, prompt],
                answer_ids=self.answer_ids[answers, answer],
                answer_mask=self.answer_mask[answers, answer],
                owners=self.owners[answers] - start,
                places=self.places[answers],
                right=self.right[answers],
                labels=self.labels[rows] - first,
                indices=self.indices[rows],
                accepted=self.accepted[rows],
            )


class EncodedAnswers(Dataset[AnswerBatch]):
    """Tokenized prompts and answers in memory, indexed by a whole batch at a time.

    Args:
        prompts: Token ids of each prompt, not empty.
        answers: Token ids of each prompt's answers, not empty.
        right: Which of them are right, the one to train on first; empty in prediction.
        accepted: The texts that a written answer is judged by; empty tuples where answers are chosen.
        pad_id: Token id that padding takes; masks hide it.
        bare: The same answers after prompts with nothing in them, where scores are to be calibrated.
    """

    def __init__(
        self,
        prompts: Sequence[Tensor],
        answers: Sequence[Sequence[Tensor]],
        right: Sequence[tuple[int, ...]],
        accepted: Sequence[tuple[str, ...]],
        pad_id: int,
        bare: EncodedAnswers | None = None,
    ) -> None:
        self.prompts = prompts
        self.answers = answers
        self.right = right
        self.accepted = accepted
        self.pad_id = pad_id
        self.bare = bare
        self.lengths = [
            len(prompt) + max(len(answer) for answer in own) for prompt, own in zip(prompts, answers, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, indices: list[int]) -> AnswerBatch:
        """The examples at these indices as one batch."""
        prompts = [self.prompts[i] for i in indices]
        answers = [answer for i in indices for answer in self.answers[i]]
        counts = [len(self.answers[i]) for i in indices]
        starts = [sum(counts[:place]) for place in range(len(counts))]
        labels = [start + self.right[i][0] if self.right[i] else -1 for start, i in zip(starts, indices, strict=True)]
        owners = [place for place, count in enumerate(counts) for _ in range(count)]
        places = [number for count in counts for number in range(count)]
        right = [number in self.right[i] for i, count in zip(indices, counts, strict=True) for number in range(count)]
        return AnswerBatch(
            pad_sequence(prompts, batch_first=True, padding_value=self.pad_id, padding_side="left"),
            pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left"),
            pad_sequence(answers, batch_first=True, padding_value=self.pad_id),
            pad_sequence([torch.ones_like(a) for a in answers], batch_first=True),
            torch.tensor(owners),
            torch.tensor(places),
            torch.tensor(right),
            torch.tensor(labels),
            torch.tensor(indices),
            max(counts),
            [list(self.accepted[i]) for i in indices],
            None if self.bare is None else self.bare[indices],
        )
