"""The batch that every task yields, how it is padded, and how it is cut into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset


class PromptBatch(NamedTuple):
    """A batch of prompts whose answer is one of a few label words.

    Attributes:
        input_ids: Token ids, shape (batch, tokens), int64, padded on the left, so that the last position is every
            prompt's last token.
        attention_mask: 0 on padding, else 1, shape (batch, tokens), int64.
        labels: Index of the right answer in ``candidates``, shape (batch,), int64.
        candidates: First token of every label word, shape (classes,), int64; the same for all examples.
        indices: Where each example stands in its dataset, shape (batch,), int64.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    candidates: Tensor
    indices: Tensor

    def repeated(self, copies: int) -> PromptBatch:
        """Returns the batch so many times in a row, shape (copies·batch, ...)."""
        if copies == 1:
            return self
        inputs, mask = self.input_ids.repeat(copies, 1), self.attention_mask.repeat(copies, 1)
        return PromptBatch(inputs, mask, self.labels.repeat(copies), self.candidates, self.indices.repeat(copies))


class EncodedPrompts(Dataset[PromptBatch]):
    """Tokenized prompts in memory, indexed by a whole batch at a time.

    Args:
        prompts: Token ids of each prompt, each of shape (tokens,), int64, not empty.
        labels: Index of each answer in ``candidates``, shape (examples,), int64.
        candidates: First token of every label word, shape (classes,), int64.
        pad_id: Token id that padding takes; the attention mask hides it.
    """

    def __init__(self, prompts: Sequence[Tensor], labels: Tensor, candidates: Tensor, pad_id: int) -> None:
        self.prompts = prompts
        self.labels = labels
        self.candidates = candidates
        self.pad_id = pad_id
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
        )


def micro_batches(batch: PromptBatch, size: int | None) -> Iterator[PromptBatch]:
    """Cuts a batch into pieces of at most ``size`` examples, in order.

    A piece of shorter prompts loses the left columns that are padding in all of its rows: no forward is spent on them.

    Args:
        batch: The batch; its tensors are sliced, not copied.
        size: Examples per piece; None leaves the batch as it is.

    Yields:
        The pieces; all share the batch's ``candidates``.
    """
    if size is None:
        yield batch
        return
    width = batch.input_ids.shape[1]
    lengths = batch.attention_mask.sum(dim=1).tolist()  # once for all pieces: on a GPU each read waits for the device
    for start in range(0, len(lengths), size):
        rows = slice(start, start + size)
        columns = slice(width - max(lengths[rows]), width)
        yield PromptBatch(
            batch.input_ids[rows, columns],
            batch.attention_mask[rows, columns],
            batch.labels[rows],
            batch.candidates,
            batch.indices[rows],
        )
