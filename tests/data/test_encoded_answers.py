"""Batches of prompts with several answers: layout, parts, repetition, and the correct answers alone."""

from __future__ import annotations

import torch
from torch import Tensor

from zolit.data.encoded import EncodedAnswers
from zolit.models.batches import AnswerBatch, micro_batches

PROMPTS = [torch.tensor(ids) for ids in ([5, 6, 7], [8], [9, 4])]
ANSWERS = [[torch.tensor(a) for a in own] for own in ([[1, 2], [3]], [[1]], [[2, 2, 2], [1], [3, 3]])]
RIGHT = [(1,), (0,), (2, 0)]


def data() -> EncodedAnswers:
    return EncodedAnswers(PROMPTS, ANSWERS, RIGHT, [("x",), (), ("y", "z")], pad_id=0)


def texts(batch: AnswerBatch) -> list[tuple[list[int], list[int], bool]]:
    """Returns each prompt and answer without padding, and whether the answer is correct."""

    def plain(ids: Tensor, mask: Tensor) -> list[int]:
        return ids[mask == 1].tolist()

    return [
        (
            plain(batch.prompt_ids[owner], batch.prompt_mask[owner]),
            plain(batch.answer_ids[row], batch.answer_mask[row]),
            bool(batch.is_correct[row]),
        )
        for row, owner in enumerate(batch.prompt_index.tolist())
    ]


def expected(indices: list[int]) -> list[tuple[list[int], list[int], bool]]:
    return [
        (PROMPTS[i].tolist(), answer.tolist(), place in RIGHT[i])
        for i in indices
        for place, answer in enumerate(ANSWERS[i])
    ]


def test_layout() -> None:
    batch = data()[[2, 0]]
    assert texts(batch) == expected([2, 0])
    assert batch.prompt_ids.tolist() == [[0, 9, 4], [5, 6, 7]]
    assert batch.answer_ids[1].tolist() == [1, 0, 0]
    assert batch.labels.tolist() == [2, 4]  # training uses the first correct answer
    assert batch.choice_index.tolist() == [0, 1, 2, 0, 1]
    assert batch.max_choices == 3
    assert batch.references == [["y", "z"], ["x"]]
    assert data().lengths == [5, 2, 5]


def test_parts_are_the_batch_without_padding_columns() -> None:
    batch = data()[[0, 1, 2]]
    pieces = list(micro_batches(batch, 2))
    assert [text for piece in pieces for text in texts(piece)] == texts(batch)
    assert [piece.labels.tolist() for piece in pieces] == [[1, 2], [2]]
    assert pieces[0].answer_ids.shape == (3, 2)
    assert pieces[1].prompt_ids.shape == (1, 2)
    assert pieces[1].references == [["y", "z"]]
    [single] = list(micro_batches(data()[[1]], 1))
    assert texts(single) == expected([1])


def test_repeated() -> None:
    batch = data()[[0, 2]]
    twice = batch.repeated(2)
    assert texts(twice) == texts(batch) * 2
    assert twice.prompt_index.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert twice.labels.tolist() == [1, 4, 6, 9]
    assert twice.references == batch.references * 2


def test_correct_only() -> None:
    batch = data()[[0, 2]].correct_only()
    assert texts(batch) == [([5, 6, 7], [3], True), ([9, 4], [3, 3], True)]
    assert batch.labels.tolist() == batch.prompt_index.tolist() == [0, 1]
    assert batch.max_choices == 1


def test_no_answer_is_correct_in_prediction() -> None:
    unknown = EncodedAnswers(PROMPTS, ANSWERS, [(), (), ()], [(), (), ()], pad_id=0)
    batch = unknown[[0, 1]]
    assert batch.labels.tolist() == [-1, -1]
    assert not batch.is_correct.any()
