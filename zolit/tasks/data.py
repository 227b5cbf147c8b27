"""The data module: records of a task, read, checked and tokenized before a run begins, and served in batches.

Everything happens in ``setup``, so that a run which starts does not fail on its data later.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import ParallelStrategy
from torch.utils.data import DataLoader

from zolit.errors import UserError
from zolit.pretrained import load_tokenizer
from zolit.tasks.answers import EncodedAnswers
from zolit.tasks.batch import Batch, EncodedPrompts
from zolit.tasks.classification import Classification
from zolit.tasks.encoding import Encoder
from zolit.tasks.records import Records, fetch_dataset, is_saved_dataset, read_dataset, read_file
from zolit.tasks.sampling import GlobalBatchSampler, OrderedBatchSampler, ResumableLoader
from zolit.tasks.task import DatasetSplits, Record, Task


class PromptedData(LightningDataModule):
    """Records as prompts, by a task, from files, a folder or the hub.

    Args:
        name_or_path: Folder or hub id of the model, for its tokenizer and the length of its context.
        task: What is asked: SST2, RTE, ... or Classification, MultipleChoice, Writing over columns of your own; null
            is Classification, with SST-2's prompt and words.
        train_file: A jsonl, csv or parquet file to train on. A file takes precedence over the data set.
        validation_file: The same for validation.
        test_file: The same for testing.
        dataset: Hub id of a data set, or a folder written by DatasetDict.save_to_disk; null is the task's own, unless
            there are files.
        dataset_config: Configuration of the data set on the hub, such as sst2 of nyu-mll/glue; null is the task's.
        dataset_splits: Which split of the data set plays which part; null is as the task has it.
        train_examples: How many training examples to take at random; null for all.
        validation_examples: How many validation examples to take at random; null for all.
        test_examples: How many test examples to take at random; null for all.
        demonstrations: How many training examples come, with their answers, before every prompt.
        calibrated: Choose the answer that a prompt makes likelier by most, rather than the likeliest: by its
            log-likelihood less that after the prompt with nothing in it (Holtzman et al., arXiv 2104.08315). For
            evaluation and prediction; training is the same.
        batch_size: Training examples per step on each process.
        eval_batch_size: Examples per forward in evaluation on each process, at most.
        max_tokens: The longest prompt with its answer, in tokens; null for the model's context.
        too_long: What is longer is refused, or cut at its beginning: the end of a prompt is what asks for the answer.
        seed: Seed of the training order and of the random choices of examples.
        trust_remote_code: Run code that comes with the tokenizer; the CLI links it from model.trust_remote_code.

    Attributes:
        task: The task.
        predicted_records: The records to predict, in order; there after ``setup("predict")``.
    """

    predicted_records: Sequence[Record]

    def __init__(
        self,
        *,
        name_or_path: str,
        task: Task | None = None,
        train_file: str | None = None,
        validation_file: str | None = None,
        test_file: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        dataset_splits: DatasetSplits | None = None,
        train_examples: int | None = None,
        validation_examples: int | None = None,
        test_examples: int | None = None,
        demonstrations: int = 0,
        calibrated: bool = False,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        max_tokens: int | None = None,
        too_long: Literal["refuse", "cut"] = "refuse",
        seed: int = 0,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.name_or_path = name_or_path
        self.task = task or Classification()
        self.files = {"train": train_file, "validation": validation_file, "test": test_file}
        self.dataset = dataset or (None if any(self.files.values()) else self.task.dataset)
        self.dataset_config = dataset_config or (None if dataset else self.task.dataset_config)
        self.dataset_splits = dataset_splits or self.task.splits
        self.examples = {"train": train_examples, "validation": validation_examples, "test": test_examples}
        self.demonstrations = demonstrations
        self.calibrated = calibrated
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.max_tokens = max_tokens
        self.too_long = too_long
        self.seed = seed
        self.trust_remote_code = trust_remote_code
        self._encoded: dict[str, EncodedPrompts | EncodedAnswers] = {}
        self._train_loader: ResumableLoader | None = None
        self._resume_from: dict[str, int] | None = None

    def prepare_data(self) -> None:
        """Downloads what is not there yet."""
        if not Path(self.name_or_path).is_dir():
            load_tokenizer(self.name_or_path, self.trust_remote_code)
        lacking = [split for split, file in self.files.items() if file is None and getattr(self.dataset_splits, split)]
        if lacking and self.dataset is not None and not is_saved_dataset(self.dataset):
            fetch_dataset(self.dataset, self.dataset_config, None)

    def setup(self, stage: str) -> None:
        """Reads, checks and tokenizes the splits that a stage needs, each once.

        Validation during a fit is optional; prediction takes the test split if there is one, else validation.

        Raises:
            UserError: If anything is wrong with the options or the data.
        """
        self._check_numbers()
        if self.calibrated and self.task.written:
            raise UserError("--data.calibrated is for answers that are chosen, and those of this task are written")
        if stage == "fit":  # comes before load_state_dict
            self._train_loader = self._resume_from = None
        needed = {
            "fit": ["train", "validation"] if self.has("validation") else ["train"],
            "validate": ["validation"],
            "test": ["test"],
            "predict": ["predict"],
        }[stage]
        missing = [split for split in needed if split not in self._encoded]
        if missing:
            records = {split: self._read(split) for split in missing}
            encoder = Encoder.of_model(
                self.task,
                self.name_or_path,
                self.trust_remote_code,
                max_tokens=self.max_tokens,
                cut=self.too_long == "cut",
                demonstrated=self.demonstrations > 0,
            )
            shown = ""
            if self.demonstrations:
                shown = encoder.demonstrations(self._shown_records(records), self.demonstrations, self.seed)
            if "predict" in records:
                self.predicted_records = records["predict"].rows
            for split, of_split in records.items():
                calibrated = self.calibrated and split != "train"
                self._encoded[split] = encoder.encode(of_split, split != "predict", shown, calibrated)
        self._check_sizes(needed)
        # Lightning's advice to use worker processes is wrong here, for the tokens are in memory; and having no
        # validation loader is meant.
        warnings.filterwarnings("ignore", message="The '[a-z]+_dataloader' does not have many workers")
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")

    def train_dataloader(self) -> ResumableLoader:
        """Training batches, this process's share; one loader for a whole fit, so that it keeps its place."""
        if self._train_loader is None:
            rank, world = self._place
            data = self._encoded["train"]
            sampler = GlobalBatchSampler(data.lengths, self.batch_size, rank=rank, world_size=world, seed=self.seed)
            self._train_loader = ResumableLoader(data, sampler=sampler, batch_size=None)
            if self._resume_from is not None:
                self._train_loader.load_state_dict(self._resume_from)
        return self._train_loader

    def state_dict(self) -> dict[str, int]:
        """The place of the training loader.

        The loader has a state of its own, but Lightning (2.6) does not always give it back: not to a run that resumes
        at the end of an epoch, nor where the loader was asked for early (``trainer.estimated_stepping_batches``).
        """
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Puts the training loader, which is made later, in its place."""
        self._resume_from = state_dict

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Validation batches of similar length, this process's share; none where a fit has no validation data."""
        return self._evaluation_loader("validation") if self.has("validation") else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test batches of similar length, this process's share."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Batches in the order of the records, this process's share."""
        return self._evaluation_loader("predict", by_length=False)

    def _evaluation_loader(self, split: str, by_length: bool = True) -> DataLoader[Batch]:
        rank, world = self._place
        data = self._encoded[split]
        sampler = OrderedBatchSampler(
            data.lengths, self.eval_batch_size, by_length=by_length, rank=rank, world_size=world
        )
        return DataLoader(data, sampler=sampler, batch_size=None)

    @property
    def _place(self) -> tuple[int, int]:
        """Which share of the examples is this process's, and how many there are."""
        strategy = None if self.trainer is None else self.trainer.strategy
        if not isinstance(strategy, ParallelStrategy):
            return 0, 1
        shares = strategy.distributed_sampler_kwargs
        return shares["rank"], shares["num_replicas"]

    @property
    def _predict_split(self) -> str:
        return "test" if self.has("test") else "validation"

    def has(self, split: str) -> bool:
        """Tells whether there is data for a part: train, validation or test."""
        named = getattr(self.dataset_splits, split) is not None
        return self.files[split] is not None or (self.dataset is not None and named)

    def _check_numbers(self) -> None:
        numbers = {f"{split}_examples": count for split, count in self.examples.items()}
        numbers |= {"batch_size": self.batch_size, "eval_batch_size": self.eval_batch_size}
        numbers |= {"max_tokens": self.max_tokens, "demonstrations": self.demonstrations or None}  # 0 is none of them
        for option, number in numbers.items():
            if number is not None and number < 1:
                raise UserError(f"--data.{option} must be at least 1, not {number}")
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]  # set, not declared
            raise UserError(
                "Trainer(overfit_batches=...) puts another sampler in the place of the data module's: use"
                " --data.train_examples to train on a few examples"
            )

    def _source(self, split: str) -> tuple[str | None, str | None]:
        """Returns the file, or the split of the data set, that plays a part."""
        file = self.files[split]
        return file, None if file is not None or self.dataset is None else getattr(self.dataset_splits, split)

    def _read(self, part: str) -> Records:
        """Reads the records of a split; prediction needs no labels."""
        split = self._predict_split if part == "predict" else part
        needed = dict(self.task.inputs())
        if part != "predict":
            for asker, columns in self.task.targets().items():
                needed[asker] = [*needed.get(asker, ()), *columns]
        file, name = self._source(split)
        if file is not None:
            records = read_file(file)
        elif self.dataset is not None and name is not None:
            wanted = [column for columns in (*needed.values(), *self.task.targets().values()) for column in columns]
            records = read_dataset(self.dataset, self.dataset_config, name, wanted)
        else:
            raise UserError(f"there is no {split} data: give --data.{split}_file or --data.dataset")
        skipped = self._trained_of(split)
        if self.examples[split] is not None or skipped:
            records = records.subset(self.examples[split], self.seed, f"--data.{split}_examples", skipped)
        records.require(needed)
        return records

    def _trained_of(self, split: str) -> int:
        """Returns how many examples of the split of the data set that plays a part are trained on."""
        source = self._source(split)
        if split == "train" or not source[1] or self._source("train") != source:
            return 0
        if self.examples["train"] is None:
            raise UserError(
                f"train and {split} data are both taken from the split {source[1]!r}: give --data.train_examples, or"
                f" {split} data of its own"
            )
        return self.examples["train"]

    def _shown_records(self, records: dict[str, Records]) -> Records:
        shown = records.get("train") or self._read("train")
        if self.demonstrations > len(shown.rows):
            raise UserError(
                f"--data.demonstrations asks for {self.demonstrations} examples, but only {len(shown.rows)} are to"
                " train on"
            )
        return shown

    def _check_sizes(self, splits: list[str]) -> None:
        _, world = self._place
        for split in splits:
            size = len(self._encoded[split])
            least = self.batch_size * world if split == "train" else world
            if size < least:
                what = f"one batch of {self.batch_size} on each of {world} processes" if split == "train" else ""
                what = what or f"one for each of {world} processes"
                raise UserError(f"there are {size} {split} examples, fewer than the {least} that {what} takes")
