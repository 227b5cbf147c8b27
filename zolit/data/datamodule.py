"""The data module: reads, checks and tokenizes the records of a task before training, and serves them in batches.

All reading happens in ``setup``, so that errors in the data stop a run before its first step.
"""

from __future__ import annotations

import warnings
import zlib
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from zolit.data.encoded import EncodedAnswers, EncodedPrompts
from zolit.data.encoding import Encoder
from zolit.data.parts import Parts
from zolit.data.records import Records
from zolit.data.sampling import GlobalBatchSampler, OrderedBatchSampler, ResumableLoader
from zolit.data.texts import EncodedTexts, encode_texts
from zolit.errors import UserError, require
from zolit.models.batches import Batch
from zolit.models.loading import load_tokenizer
from zolit.tasks.classification import Classification
from zolit.tasks.task import DatasetSplits, Task
from zolit.tasks.text import Text


class PromptedData(LightningDataModule):
    """Turns the records of a task, from files, a folder or the hub, into batches of prompts.

    Args:
        name_or_path: Folder or hub id of the model, for its tokenizer and the length of its context.
        task: The task: SST2, RTE, ... or Classification, MultipleChoice, Generation or Text with your own
            columns; null is Classification with the prompt and label words of SST-2.
        train_file: A jsonl, csv or parquet file to train on. A file takes precedence over the data set.
        validation_file: A jsonl, csv or parquet file to validate on.
        test_file: A jsonl, csv or parquet file to test on.
        dataset: Hub id of a data set, or a folder written by DatasetDict.save_to_disk; null is the task's own data set,
            unless a file is given.
        dataset_config: Configuration of the data set on the hub, such as sst2 of nyu-mll/glue; null is the task's.
        dataset_splits: Split of the data set for training, validation and testing; null is the task's choice.
        train_examples: Number of random training examples; null for all. A file with fewer gives all that it has; a
            split of a data set with fewer is refused. The same holds for the two options below.
        validation_examples: Number of random validation examples; null for all.
        test_examples: Number of random test examples; null for all.
        demonstrations: Number of training examples with answers that precede each prompt (in-context examples).
        calibrated: Choose the answer whose log-likelihood rises most over that after the empty prompt, rather than the
            likeliest answer (Holtzman et al., arXiv 2104.08315). This affects evaluation and prediction, not training.
        batch_size: Training examples per step on each process.
        eval_batch_size: Largest number of examples per forward in evaluation, on each process.
        max_tokens: The longest prompt with its answer, or the longest text, in tokens; null for the model's context.
        too_long: For what is over the limit: refuse stops with an error; cut removes the start of a prompt and keeps
            the end, which holds the question. Of a plain text (zolit.tasks.Text), cut keeps the start.
        seed: Seed of the training order and of the random choices of examples; null is seed_everything, or 0 without
            the command line.
        trust_remote_code: Run code that comes with the tokenizer; the command line copies model.trust_remote_code.

    Attributes:
        predicted_records: The records to predict, in order, with their numbers; set by ``setup("predict")``.
    """

    predicted_records: Records

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
        seed: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.name_or_path = name_or_path
        self.task = task or Classification()
        files = {"train": train_file, "validation": validation_file, "test": test_file}
        self._parts = Parts(
            self.task,
            files,
            dataset or (None if any(files.values()) else self.task.dataset),
            dataset_config or (None if dataset else self.task.dataset_config),
            dataset_splits or self.task.splits,
            {"train": train_examples, "validation": validation_examples, "test": test_examples},
            seed or 0,
        )
        self.demonstrations = demonstrations
        self.calibrated = calibrated
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.max_tokens = max_tokens
        self.too_long = too_long
        self.seed = seed or 0
        self.trust_remote_code = trust_remote_code
        self._encoded: dict[str, EncodedPrompts | EncodedAnswers | EncodedTexts] = {}
        self._train_loader: ResumableLoader | None = None
        self._fits = False

    def prepare_data(self) -> None:
        """Downloads the tokenizer and the data set if needed. Called on one process, before ``setup``."""
        if not Path(self.name_or_path).is_dir():
            load_tokenizer(self.name_or_path, self.trust_remote_code)
        self._parts.download()

    def setup(self, stage: str) -> None:
        """Reads, checks and tokenizes the parts that a stage needs, each once.

        A fit without validation data is allowed. Prediction uses the test data, or the validation data if there is
        none.

        Raises:
            UserError: If an option or the data is invalid.
        """
        self._check_numbers()
        if self.calibrated and self.task.generates:
            raise UserError("--data.calibrated needs a task with choices; the answers of this task are generated")
        if isinstance(self.task, Text) and (self.calibrated or self.demonstrations):
            option = "calibrated" if self.calibrated else "demonstrations"
            raise UserError(f"--data.{option} needs a task with answers; plain texts (zolit.tasks.Text) have none")
        self._fits = stage == "fit"
        if self._fits:  # setup runs before load_state_dict
            self._train_loader = None
        needed = {
            "fit": ["train", "validation"] if self.has("validation") else ["train"],
            "validate": ["validation"],
            "test": ["test"],
            "predict": ["predict"],
        }[stage]
        missing = [part for part in needed if part not in self._encoded]
        if missing:
            records = {part: self._parts.read(part) for part in missing}
            encoder = Encoder.for_model(
                self.task,
                self.name_or_path,
                self.trust_remote_code,
                max_tokens=self.max_tokens,
                truncate=self.too_long == "cut",
                has_demonstrations=self.demonstrations > 0,
            )
            demonstrations = ""
            if self.demonstrations:
                shown = self._demonstration_records(records)
                demonstrations = encoder.demonstrations(shown, self.demonstrations, self.seed)
            if "predict" in records:
                self.predicted_records = records["predict"]
            for part, of_part in records.items():
                if isinstance(self.task, Text):
                    packed = self.task.packed and part != "predict"  # predictions are those of records
                    self._encoded[part] = encode_texts(encoder, self.task, of_part, packed)
                    continue
                calibrated = self.calibrated and part != "train"
                self._encoded[part] = encoder.encode(of_part, part != "predict", demonstrations, calibrated)
        self._check_sizes(needed)
        # Lightning advises worker processes, but the tokens are in memory. A fit without validation data is intended.
        warnings.filterwarnings("ignore", message="The '[a-z]+_dataloader' does not have many workers")
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")

    @property
    def label_tokens(self) -> Tensor | None:
        """Token ids of the label words, shape (classes,); None if answers are not label words of one token each."""
        found = [part.candidates for part in self._encoded.values() if isinstance(part, EncodedPrompts)]
        alike = len(found) == len(self._encoded) and all(torch.equal(part, found[0]) for part in found)
        return found[0] if found and alike else None

    def train_dataloader(self) -> ResumableLoader:
        """Returns this process's training batches. A fit has one loader, so that the loader keeps its position."""
        if self._train_loader is None:
            self._train_loader = self._training_loader()
        return self._train_loader

    def first_batches(self, count: int) -> list[Batch]:
        """Returns this process's first training batches, at most one epoch. The training loader keeps its position."""
        return list(islice(self._training_loader(), count))

    def _training_loader(self) -> ResumableLoader:
        rank, world = self._rank_and_world_size
        data = self._encoded["train"]
        sampler = GlobalBatchSampler(data.lengths, self.batch_size, rank=rank, world_size=world, seed=self.seed)
        return ResumableLoader(data, sampler=sampler, batch_size=None)

    def state_dict(self) -> dict[str, int]:
        """Returns the position of the training loader (see ``ResumableLoader.state_dict``), and a hash of the task.

        The loader has its own state, but Lightning (2.6) does not always restore it: not in a run that resumes at the
        end of an epoch, nor if ``trainer.estimated_stepping_batches`` created the loader early.
        """
        if self._train_loader is None:
            return {}
        return {**self._train_loader.state_dict(), "task": self._task_hash()}

    def _task_hash(self) -> int:
        """Returns a hash of the task's class and options, such as the prompt and the label words."""
        return zlib.crc32(f"{type(self.task).__qualname__} {sorted(vars(self.task).items())}".encode())

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restores the position of the training loader in a fit. Other stages do not train and accept any checkpoint.

        Raises:
            UserError: If the run of the checkpoint had other batches, over all processes, or another task.
        """
        if self._fits:
            require(
                state_dict.get("task") == self._task_hash(),
                "data.task: the run of the checkpoint had another task, prompt or label words; go on with its options, "
                "or begin a new run",
            )
            self.train_dataloader().load_state_dict(state_dict)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Returns this process's validation batches, of examples of similar length; [] without validation data."""
        return self._evaluation_loader("validation") if self.has("validation") else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """Returns this process's test batches, of examples of similar length."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Returns this process's batches in the order of the records."""
        return self._evaluation_loader("predict", by_length=False)

    def _evaluation_loader(self, part: str, by_length: bool = True) -> DataLoader[Batch]:
        rank, world = self._rank_and_world_size
        data = self._encoded[part]
        sampler = OrderedBatchSampler(
            data.lengths, self.eval_batch_size, by_length=by_length, rank=rank, world_size=world
        )
        return DataLoader(data, sampler=sampler, batch_size=None)

    @property
    def _rank_and_world_size(self) -> tuple[int, int]:
        """The index of this process's share of the examples, and the number of shares."""
        strategy = None if self.trainer is None else self.trainer.strategy
        if not isinstance(strategy, ParallelStrategy):
            return 0, 1
        shares = strategy.distributed_sampler_kwargs
        return shares["rank"], shares["num_replicas"]

    def has(self, part: str) -> bool:
        """Returns whether there is data for train, validation or test."""
        return self._parts.has(part)

    def _check_numbers(self) -> None:
        numbers = {f"{split}_examples": count for split, count in self._parts.examples.items()}
        numbers |= {"batch_size": self.batch_size, "eval_batch_size": self.eval_batch_size}
        numbers |= {"max_tokens": self.max_tokens, "demonstrations": self.demonstrations or None}  # 0 is allowed
        for option, number in numbers.items():
            if number is not None and number < 1:
                raise UserError(f"--data.{option} must be at least 1, not {number}")
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]  # set, not declared
            raise UserError(
                "Trainer(overfit_batches=...) replaces the sampler of the data module: use --data.train_examples to"
                " train on a few examples"
            )

    def _demonstration_records(self, records: dict[str, Records]) -> Records:
        """Returns the training records, from which the demonstrations are drawn."""
        shown = records.get("train") or self._parts.read("train")
        if self.demonstrations > len(shown.rows):
            raise UserError(
                f"--data.demonstrations asks for {self.demonstrations} examples, but there are only"
                f" {len(shown.rows)} training examples"
            )
        return shown

    def _check_sizes(self, parts: list[str]) -> None:
        _, world = self._rank_and_world_size
        for part in parts:
            size = len(self._encoded[part])
            least = self.batch_size * world if part == "train" else world
            if size < least:
                each = f"one batch of {self.batch_size}" if part == "train" else "one example"
                raise UserError(
                    f"there are {size} {part} examples, fewer than the {least} that {world} processes need: {each} each"
                )
