"""Reads the records for training, validation, test and prediction. Files take precedence over splits of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zolit.data.files import read_file
from zolit.data.records import Records
from zolit.data.saved import fetch_dataset, is_saved_dataset, read_dataset
from zolit.errors import UserError
from zolit.tasks.task import DatasetSplits, Task


@dataclass(frozen=True)
class Parts:
    """The sources of the parts ``train``, ``validation`` and ``test``; ``predict`` uses test, else validation.

    Args:
        task: The task, which names the columns that records need.
        files: The file of each part, or None.
        dataset: Hub id of a data set, or a folder written by ``DatasetDict.save_to_disk``; None for files alone.
        dataset_config: Configuration of the data set on the hub.
        splits: The split of the data set that each part uses.
        examples: Number of random examples of each part; None for all.
        seed: Seed of the random choice.
    """

    task: Task
    files: Mapping[str, str | None]
    dataset: str | None
    dataset_config: str | None
    splits: DatasetSplits
    examples: Mapping[str, int | None]
    seed: int

    def has(self, part: str) -> bool:
        """Returns whether there is data for train, validation or test."""
        named = getattr(self.splits, part) is not None
        return self.files[part] is not None or (self.dataset is not None and named)

    def download(self) -> None:
        """Downloads the data set if a part uses it and it is on the hub."""
        lacking = [part for part, file in self.files.items() if file is None and getattr(self.splits, part)]
        if lacking and self.dataset is not None and not is_saved_dataset(self.dataset):
            fetch_dataset(self.dataset, self.dataset_config, None)

    def read(self, part: str) -> Records:
        """Reads and checks the records of a part. Prediction needs no labels, and takes all records.

        Raises:
            UserError: If there is no data, a column or a value is missing, a prompt is blank, or there are too few
                examples.
        """
        source = part
        if part == "predict":
            source = "test" if self.has("test") else "validation"
        needed = dict(self.task.inputs())
        if part != "predict":
            for option, columns in self.task.targets().items():
                needed[option] = [*needed.get(option, ()), *columns]
        file, split = self._source(source)
        if file is not None:
            records = read_file(file)
        elif self.dataset is not None and split is not None:
            wanted = [column for columns in (*needed.values(), *self.task.targets().values()) for column in columns]
            records = read_dataset(self.dataset, self.dataset_config, split, wanted)
        else:
            raise UserError(f"there is no {source} data: set --data.{source}_file or --data.dataset")
        skipped = self._num_trained_on(source)
        size = None if part == "predict" else self.examples[source]
        if size is not None or skipped:
            on_hub = file is None and not is_saved_dataset(str(self.dataset))
            choose = records.subset if on_hub else records.at_most  # exactly as many, as tables of papers need it
            records = choose(size, self.seed, f"--data.{source}_examples", skipped)
        records.require(needed)
        records.refuse_blanks({column: None for columns in self.task.inputs().values() for column in columns})
        return records

    def _source(self, part: str) -> tuple[str | None, str | None]:
        """Returns the file of a part, or its split of the data set; None for the other."""
        file = self.files[part]
        return file, None if file is not None or self.dataset is None else getattr(self.splits, part)

    def _num_trained_on(self, part: str) -> int:
        """Returns how many examples of the part's split are used for training, so that the part excludes them."""
        source = self._source(part)
        if part == "train" or not source[1] or self._source("train") != source:
            return 0
        if self.examples["train"] is None:
            raise UserError(
                f"train and {part} data both come from the split {source[1]!r}: set --data.train_examples, or use"
                f" another split or file for {part}"
            )
        return self.examples["train"]
