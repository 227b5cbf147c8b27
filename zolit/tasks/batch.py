"""The batch of tasks that one token answers, how it is padded, and how it is cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from zolit.tasks.answers import AnswerBatch


class PromptBatch(NamedTuple):
    """A batch of prompts whose answer is one of a few label words of one token each.

    Attributes:
        input_ids: Token ids, shape (batch, tokens), int64, padded on the left, so that the last position is every
            prompt's last token.
        attention_mask: 0 on padding, else 1, shape (batch, tokens), int64.
        labels: Index of the right answer in ``candidates``, shape (batch,), int64.
        candidates: Token of every label word, shape (classes,), int64; the same for all examples.
        indices: Where each example stands in its dataset, shape (batch,), int64.
        answers_at: The position whose logits are the answer's, counted from the row's end, shape (batch,), int64: -1,
            or where the mask of a masked model is.
        bare: The same examples with nothing in their prompts, in evaluations that are calibrated; else None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    candidates: Tensor
    indices: Tensor
    answers_at: Tensor
    bare: PromptBatch | None = None

    def repeated(self, copies: int) -> PromptBatch:
        """Returns the batch so many times in a row, shape (copies·batch, ...)."""
        if copies == 1:
            return self
        return PromptBatch(
            self.input_ids.repeat(copies, 1),
            self.attention_mask.repeat(copies, 1),
            self.labels.repeat(copies),
            self.candidates,
            self.indices.repeat(copies),
            self.answers_at.repeat(copies),
        )

    def pieces(self, size: int) -> Iterator[PromptBatch]:
        """Cuts the batch into pieces of at most ``size`` examples, in order; all share the ``candidates``.

        A piece of shorter prompts loses the left columns that are padding in all of its rows: no forward is spent on
        them.
        """
        width = self.input_ids.shape[1]
        # Once for all pieces: on a GPU each read waits for the device.
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
                self.answers_at[rows],
            )


class EncodedPrompts(Dataset[PromptBatch]):
    """Tokenized prompts in memory, indexed by a whole batch at a time.

    Args:
        prompts: Token ids of each prompt, each of shape (tokens,), int64, not empty.
        labels: Index of each answer in ``candidates``, shape (examples,), int64.
        candidates: Token of every label word, shape (classes,), int64.
        pad_id: Token id that padding takes; the attention mask hides it.
        answers_at: Position of the answer's logits in each prompt, counted from its end, shape (examples,), int64;
            None is -1 for all.
        bare: The same examples with nothing in their prompts, where scores are to be calibrated.
    """

    def __init__(
        self,
        prompts: Sequence[Tensor],
        labels: Tensor,
        candidates: Tensor,
        pad_id: int,
        answers_at: Tensor | None = None,
        bare: EncodedPrompts | None = None,
    ) -> None:
        self.prompts = prompts
        self.labels = labels
        self.candidates = candidates
        self.pad_id = pad_id
        self.answers_at = torch.full_like(labels, -1) if answers_at is None else answers_at
        self.bare = bare
        self.lengths = [len(prompt) for prompt in prompts]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, indices: list[int]) -> PromptBatch:
        """The examples at these indices as one batch, as wide as its longest prompt."""
        prompts = [self.prompts[i] for i in indices]
        masks = [torch.ones_like(prompt) for prompt in prompts]
        return PromptBatch(
            pad_sequence(prompts, batch_first=True, padding_value=self.pad_id, padding_side="left"),
            pad_sequence(masks, batch_first=True, padding_side="left"),
            self.labels[indices],
            self.candidates,
            torch.tensor(indices),
            self.answers_at[indices],
            None if self.bare is None else self.bare[indices],
        )


Batch = PromptBatch | AnswerBatch


def micro_batches(batch: Batch, size: int | None) -> Iterator[Batch]:
    """Cuts a batch into pieces of at most ``size`` examples, in order.

    Args:
        batch: The batch; its tensors are sliced, not copied.
        size: Examples per piece; None leaves the batch as it is.
    """
    if size is None:
        yield batch
    else:
        yield from batch.pieces(size)
