"""Which records each stage reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.words import sentences, write
from zolit.data.parts import Parts
from zolit.tasks.classification import Classification
from zolit.tasks.task import DatasetSplits


@pytest.mark.parametrize("source", ["test", "validation"])
def test_prediction_takes_all_records_in_order(tmp_path: Path, source: str) -> None:
    """Numbers of examples are for training and scores; a prediction is wanted for each record."""
    rows = sentences(8)
    files = {"train": None, "validation": None, "test": None, source: write(tmp_path / "records.jsonl", rows)}
    examples = {"train": 2, "validation": 3, "test": 3}
    parts = Parts(Classification(), files, None, None, DatasetSplits(), examples, seed=0)
    assert len(parts.read(source).rows) == 3
    assert list(parts.read("predict").rows) == rows
    assert list(parts.read("predict").numbers) == list(range(1, 9))
