"""Batches of prompts that one token answers: padding and micro-batches."""

from __future__ import annotations

import torch

from zolit.data.encoded import EncodedPrompts
from zolit.models.batches import PromptBatch, micro_batches

PROMPTS = [torch.tensor(ids) for ids in ([5, 6, 7, 8], [5, 9], [4], [4, 3, 2])]


def data() -> EncodedPrompts:
    return EncodedPrompts(PROMPTS, torch.tensor([0, 1, 1, 0]), torch.tensor([11, 12]), pad_id=99)


def test_padding_is_on_the_left_and_masked() -> None:
    batch = data()[[1, 0]]
    assert batch.input_ids.tolist() == [[99, 99, 5, 9], [5, 6, 7, 8]]
    assert batch.attention_mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert batch.labels.tolist() == [1, 0]
    assert batch.candidates.tolist() == [11, 12]
    assert {tensor.dtype for tensor in batch[:-1]} == {torch.int64}


def test_padding_never_changes_the_last_token() -> None:
    for indices in ([0, 1, 2, 3], [2], [3, 1], [2, 0]):
        batch = data()[indices]
        assert batch.input_ids[:, -1].tolist() == [int(PROMPTS[i][-1]) for i in indices]
        for piece, index in zip(micro_batches(batch, 1), indices, strict=True):
            assert piece.input_ids.tolist() == [PROMPTS[index].tolist()]  # without padding


def test_micro_batches_are_the_batch_without_padding_columns() -> None:
    batch = data()[[0, 1, 2]]
    first, second = micro_batches(batch, 2)
    assert first.input_ids.tolist() == batch.input_ids[:2].tolist()
    assert second.input_ids.tolist() == [[4]]
    assert second.attention_mask.tolist() == [[1]]
    assert [piece.labels.tolist() for piece in (first, second)] == [[0, 1], [1]]
    assert all(piece.candidates is batch.candidates for piece in (first, second))
    [whole] = micro_batches(batch, 8)
    assert all(torch.equal(a, b) for a, b in zip(whole[:-1], batch[:-1], strict=True))


def test_no_size_leaves_the_batch_as_it_is() -> None:
    batch = PromptBatch(*(torch.zeros(2, 3, dtype=torch.int64) for _ in PromptBatch._fields[:-1]))
    [only] = micro_batches(batch, None)
    assert only is batch
