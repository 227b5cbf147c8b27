from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from tests.helpers.words import build_tokenizer, sentences, write
from zolit.data.datamodule import PromptedData
from zolit.tasks.classification import Classification

TASK_OPTIONS = ("template", "label_words", "label_column", "masked_template")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns a folder with a tokenizer and the configuration of a model with a context of 24 tokens."""
    folder = tmp_path_factory.mktemp("model")
    build_tokenizer().save_pretrained(folder)
    LlamaConfig(max_position_embeddings=24, hidden_size=8, num_attention_heads=1).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def module(tmp_path: Path, model_folder: str) -> Callable[..., PromptedData]:
    """Returns a function that makes a data module of 37 training and 11 validation records; arguments override."""
    train = write(tmp_path / "train.jsonl", sentences(37))
    validation = write(tmp_path / "validation.jsonl", sentences(11))

    def build(**options: Any) -> PromptedData:
        defaults = {"train_file": train, "validation_file": validation, "batch_size": 4, "eval_batch_size": 4}
        words = {"label_words": {"0": " bad", "1": " great"}}
        task = Classification(**(words | {name: options.pop(name) for name in TASK_OPTIONS if name in options}))
        return PromptedData(**({"name_or_path": model_folder, "task": task} | defaults | options))

    return build
