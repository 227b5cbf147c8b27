"""Demonstrations, prompts that are too long, parts of one split, and the kind of a task's batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.helpers.words import VOCABULARY, sentences, write
from zolit.data.datamodule import PromptedData
from zolit.errors import UserError
from zolit.models.batches import AnswerBatch, PromptBatch
from zolit.tasks.generation import Generation
from zolit.tasks.multiple_choice import MultipleChoice
from zolit.tasks.task import DatasetSplits

Build = Callable[..., PromptedData]
INVERSE = {number: word for word, number in VOCABULARY.items()}


def text(ids: Any, mask: Any) -> str:
    return "".join(INVERSE[int(token)] for token in ids[mask == 1])


def test_words_of_several_tokens_are_scored_as_a_whole(module: Build) -> None:
    """ " terrible" has two tokens in this tokenizer; words may also start with the same token."""
    data = module(label_words={"0": " terrible", "1": " ter"})
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert isinstance(batch, AnswerBatch)
    answers = [text(ids, mask) for ids, mask in zip(batch.answer_ids, batch.answer_mask, strict=True)]
    assert answers == [" terrible", " ter"] * len(batch.labels)
    assert batch.max_choices == 2
    data = module()
    data.setup("validate")
    assert isinstance(next(iter(data.val_dataloader())), PromptBatch)


def test_demonstrations_precede_each_prompt_and_depend_on_the_seed(module: Build) -> None:
    prompts = []
    for seed in (0, 0, 1):
        data = module(demonstrations=2, max_tokens=24, seed=seed, too_long="cut")
        data.setup("validate")
        encoded = data._encoded["validation"]
        prompts.append(["".join(INVERSE[int(token)] for token in ids) for ids in encoded.prompts])
    assert prompts[0] == prompts[1] != prompts[2]
    plain = module()
    plain.setup("validate")
    for shown, own in zip(prompts[0], plain._encoded["validation"].prompts, strict=True):
        assert shown.endswith("".join(INVERSE[int(token)] for token in own[2:]))
        assert shown.count(" It was") == 3
        assert sum(shown.count(word) for word in (" great", " bad")) == 2
    with pytest.raises(UserError, match=r"--data.demonstrations must be at least 1, not -1"):
        module(demonstrations=-1).setup("validate")
    with pytest.raises(
        UserError, match=r"--data.demonstrations asks for 38 examples, but there are only 37 training examples"
    ):
        module(demonstrations=38).setup("validate")


def test_truncation_removes_the_start_and_keeps_the_bos(module: Build, tmp_path: Path) -> None:
    long = write(tmp_path / "long.jsonl", [{"sentence": "c" + " a" * 30 + " b", "label": 0}] * 4)
    data = module(validation_file=long, too_long="cut")
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert batch.input_ids.shape == (4, 24)
    whole = text(batch.input_ids[0], batch.attention_mask[0])
    assert whole == "<s>" + " a" * 20 + " b It was"


def test_truncation_leaves_space_for_an_answer(module: Build, tmp_path: Path) -> None:
    """One token less than the longest answer: the prompt's last token predicts the answer's first."""

    class Short(Generation):
        max_new_tokens = 5

    rows = [{"q": "c" + " a" * 30, "gold": "b"}] * 4
    data = module(validation_file=write(tmp_path / "w.jsonl", rows), task=Short("{q} It was", "gold"), too_long="cut")
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert isinstance(batch, AnswerBatch)
    assert batch.prompt_ids.shape == (4, 20)
    assert batch.references == [["b"]] * 4
    long = [{"q": "c", "gold": "b " * 6}, *rows]
    data = module(validation_file=write(tmp_path / "l.jsonl", long), task=Short("{q} It was", "gold"), too_long="cut")
    with pytest.warns(UserWarning, match=r"l.jsonl has 1 answers with more tokens than the task generates \(5; the"):
        data.setup("validate")
    refused = module(validation_file=write(tmp_path / "w.jsonl", rows), task=Short("{q} It was", "gold"))
    with pytest.raises(UserError, match="has 34 tokens and 4 more in its answer, more than the limit of 24"):
        refused.setup("validate")


def test_parts_of_one_split_are_disjoint(
    module: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list({row["sentence"]: row for row in sentences(60)}.values())[:30]
    assert len(rows) == 30
    both = {"train": datasets.Dataset.from_list(rows), "held": datasets.Dataset.from_list(sentences(9))}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "saved")

    def made(**options: Any) -> PromptedData:
        files = {"train_file": None, "validation_file": None}
        return module(dataset=str(tmp_path / "saved"), **(files | {"dataset_splits": SAME} | options))

    SAME = DatasetSplits("train", "train", "held")
    data = made(train_examples=16, validation_examples=10)
    data.setup("fit")
    data.setup("test")
    chosen = {part: set(map(tuple, (p.tolist() for p in data._encoded[part].prompts))) for part in data._encoded}
    assert {part: len(of) for part, of in chosen.items() if part != "test"} == {"train": 16, "validation": 10}
    assert not chosen["train"] & chosen["validation"]
    rest = made(train_examples=16)
    rest.setup("fit")
    assert len(rest._encoded["validation"]) == 14
    with pytest.raises(UserError, match="train and validation data both come from the split 'train': set --data"):
        made(validation_examples=10).setup("fit")
    more = made(train_examples=16, validation_examples=15)
    more.setup("fit")
    assert len(more._encoded["validation"]) == 14
    assert "'train' of " in caplog.text
    assert "has 30, of which 16 are trained on; all others are taken" in caplog.text
    with pytest.raises(UserError, match=r"asks for 15 examples, but .* has only 30, of which 30 are trained on"):
        made(train_examples=30, validation_examples=15).setup("fit")
    monkeypatch.setattr("zolit.data.parts.is_saved_dataset", lambda path: False)  # as if it were on the hub
    monkeypatch.setattr("zolit.data.saved.fetch_dataset", lambda path, _, split: datasets.load_from_disk(path)[split])
    with pytest.raises(UserError, match=r"asks for 15 examples, but .* has only 30, of which 16 are trained on"):
        made(train_examples=16, validation_examples=15).setup("fit")


def test_choices_of_each_record(module: Build, tmp_path: Path) -> None:
    rows = [{"q": "a", "x": "great", "y": "ter", "label": 1}, {"q": "b b", "x": "bad good", "y": "c", "label": 0}] * 2
    task = MultipleChoice("{q} It was", ["x", "y"])
    data = module(validation_file=write(tmp_path / "c.jsonl", rows), task=task)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert isinstance(batch, AnswerBatch)
    found = {text(batch.answer_ids[row], batch.answer_mask[row]) for row in batch.labels.tolist()}
    assert found == {" ter", " bad good"}
    empty = [{"q": "a", "x": "great", "y": "ter", "label": 1}, {"q": "a", "x": "", "y": " ", "label": 1}]
    data = module(validation_file=write(tmp_path / "e.jsonl", empty), task=MultipleChoice("{q} It", ["x", "y"]))
    data.setup("validate")  # a space is a token here
