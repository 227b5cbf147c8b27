"""Classification by prompt: the model goes on with the text, and one word stands for each label.

As in MeZO (arXiv:2305.17333): ``{sentence} It was`` is followed by " terrible" or " great", and the label word whose
first token is likelier is the answer. The data module reads, checks and tokenizes everything in ``setup``, so that a
run which starts does not fail on its data later.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from zolit.errors import UserError
from zolit.tasks.batch import EncodedPrompts, PromptBatch
from zolit.tasks.prompts import Template, encode_prompts, label_tokens
from zolit.tasks.records import Records, fetch_dataset, is_saved_dataset, read_dataset, read_file
from zolit.tasks.sampling import GlobalBatchSampler, OrderedBatchSampler, ResumableLoader


@dataclass(frozen=True)
class DatasetSplits:
    """Which split of a data set plays which part.

    Args:
        train: Split to train on; null for none.
        validation: Split to validate on; null for none.
        test: Split to test on; null for none.
    """

    train: str | None = "train"
    validation: str | None = "validation"
    test: str | None = "test"


SENTIMENT_WORDS = {"0": " terrible", "1": " great"}
SAME_NAMES = DatasetSplits()


class PromptedClassification(LightningDataModule):
    """Labelled texts as prompts that one of a few label words answers.

    Args:
        name_or_path: Folder or hub id of the model, for its tokenizer and the length of its context.
        template: The prompt, with columns in braces. The label word follows it, so let it end without a space.
        label_words: The word for each label, beginning with a space. A label is the text of its value, so that 1
            and "1" are the same.
        label_column: Column that holds the label.
        train_file: A jsonl, csv or parquet file to train on. A file takes precedence over the data set.
        validation_file: The same for validation.
        test_file: The same for testing.
        dataset: Hub id of a data set, or a folder written by DatasetDict.save_to_disk.
        dataset_config: Configuration of the data set on the hub, such as sst2 of nyu-mll/glue.
        dataset_splits: Which split of the data set plays which part.
        train_examples: How many training examples to take at random; null for all.
        validation_examples: How many validation examples to take at random; null for all.
        test_examples: How many test examples to take at random; null for all.
        batch_size: Training examples per step on each process.
        eval_batch_size: Examples per forward in evaluation on each process, at most.
        max_tokens: The longest prompt that is accepted, in tokens; null for the model's context. Nothing is cut off:
            the end of a prompt is what asks for the answer.
        seed: Seed of the training order and of the random choices of examples.
        trust_remote_code: Run code that comes with the tokenizer; the CLI links it from model.trust_remote_code.

    Attributes:
        class_names: The labels, in the order of the classes.
        candidates: First token of each label word, shape (classes,), int64; there after ``setup``.
    """

    candidates: Tensor

    def __init__(
        self,
        *,
        name_or_path: str,
        template: str = "{sentence} It was",
        label_words: dict[str, str] = SENTIMENT_WORDS,
        label_column: str = "label",
        train_file: str | None = None,
        validation_file: str | None = None,
        test_file: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        dataset_splits: DatasetSplits = SAME_NAMES,
        train_examples: int | None = None,
        validation_examples: int | None = None,
        test_examples: int | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        max_tokens: int | None = None,
        seed: int = 0,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        self.name_or_path = name_or_path
        self.template = template
        self.label_words = {str(label): word for label, word in label_words.items()}  # YAML makes numbers of 0 and 1
        self.label_column = label_column
        self.files = {"train": train_file, "validation": validation_file, "test": test_file}
        self.dataset = dataset
        self.dataset_config = dataset_config
        self.dataset_splits = dataset_splits
        self.examples = {"train": train_examples, "validation": validation_examples, "test": test_examples}
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.max_tokens = max_tokens
        self.seed = seed
        self.trust_remote_code = trust_remote_code
        self.class_names = tuple(self.label_words)
        self._encoded: dict[str, EncodedPrompts] = {}
        self._train_loader: ResumableLoader | None = None
        self._resume_from: dict[str, int] | None = None

    def prepare_data(self) -> None:
        """Downloads what is not there yet."""
        if not Path(self.name_or_path).is_dir():
            _load_tokenizer(self.name_or_path, self.trust_remote_code)
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
        if stage == "fit":  # comes before load_state_dict
            self._train_loader = self._resume_from = None
        needed = {
            "fit": ["train", "validation"] if self._has("validation") else ["train"],
            "validate": ["validation"],
            "test": ["test"],
            "predict": ["predict"],
        }[stage]
        missing = [split for split in needed if split not in self._encoded]
        if missing:
            template = Template.parse(self.template)
            records = [self._read(split, template) for split in missing]
            tokenizer = _load_tokenizer(self.name_or_path, self.trust_remote_code)
            limit = self._token_limit()
            for split, of_split in zip(missing, records, strict=True):
                labels = [-1] * len(of_split.rows) if split == "predict" else self._labels(of_split)
                self._encoded[split] = self._encode(of_split, labels, template, tokenizer, limit)
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

    def val_dataloader(self) -> DataLoader[PromptBatch] | list[DataLoader[PromptBatch]]:
        """Validation batches of similar length, this process's share; none where a fit has no validation data."""
        return self._evaluation_loader("validation") if self._has("validation") else []

    def test_dataloader(self) -> DataLoader[PromptBatch]:
        """Test batches of similar length, this process's share."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """Batches in the order of the records, this process's share."""
        return self._evaluation_loader("predict", by_length=False)

    def _evaluation_loader(self, split: str, by_length: bool = True) -> DataLoader[PromptBatch]:
        rank, world = self._place
        data = self._encoded[split]
        sampler = OrderedBatchSampler(
            data.lengths, self.eval_batch_size, by_length=by_length, rank=rank, world_size=world
        )
        return DataLoader(data, sampler=sampler, batch_size=None)

    @property
    def _place(self) -> tuple[int, int]:
        """Rank of this process, and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    @property
    def _predict_split(self) -> str:
        return "test" if self._has("test") else "validation"

    def _has(self, split: str) -> bool:
        named = getattr(self.dataset_splits, split) is not None
        return self.files[split] is not None or (self.dataset is not None and named)

    def _check_numbers(self) -> None:
        numbers = {f"{split}_examples": count for split, count in self.examples.items()}
        numbers |= {"batch_size": self.batch_size, "eval_batch_size": self.eval_batch_size}
        numbers |= {"max_tokens": self.max_tokens}
        for option, number in numbers.items():
            if number is not None and number < 1:
                raise UserError(f"--data.{option} must be at least 1, not {number}")
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]  # set, not declared
            raise UserError(
                "Trainer(overfit_batches=...) puts another sampler in the place of the data module's: use"
                " --data.train_examples to train on a few examples"
            )

    def _read(self, part: str, template: Template) -> Records:
        """Reads the records of a split; prediction needs no labels."""
        split = self._predict_split if part == "predict" else part
        labels = [] if part == "predict" else [self.label_column]
        file, name = self.files[split], getattr(self.dataset_splits, split)
        if file is not None:
            records = read_file(file)
        elif self.dataset is not None and name is not None:
            records = read_dataset(self.dataset, self.dataset_config, name, [*template.fields, *labels])
        else:
            raise UserError(f"there is no {split} data: give --data.{split}_file or --data.dataset")
        if (size := self.examples[split]) is not None:
            records = records.subset(size, self.seed, f"--data.{split}_examples")
        records.require({"--data.template": template.fields, "--data.label_column": labels})
        return records

    def _labels(self, records: Records) -> list[int]:
        """Returns the class of each record."""
        classes = {label: index for index, label in enumerate(self.class_names)}
        labels = []
        for index, row in enumerate(records.rows):
            label = str(row[self.label_column])
            if label not in classes:
                raise UserError(
                    f"{records.name(index)} has the label {label!r}, for which --data.label_words has no word (it has"
                    f" words for {', '.join(classes)})"
                )
            labels.append(classes[label])
        return labels

    def _encode(
        self,
        records: Records,
        labels: list[int],
        template: Template,
        tokenizer: PreTrainedTokenizerBase,
        limit: int | None,
    ) -> EncodedPrompts:
        prompts = [template.render(row) for row in records.rows]
        encoded = encode_prompts(tokenizer, prompts)
        for index, ids in enumerate(encoded):
            if not ids:
                raise UserError(f"{records.name(index)} makes an empty prompt with the template {self.template!r}")
            if limit is not None and len(ids) > limit:
                raise UserError(
                    f"the prompt of {records.name(index)} has {len(ids)} tokens, more than the limit of {limit}:"
                    " shorten it, or raise --data.max_tokens if the model's context allows"
                )
        self.candidates = torch.tensor(label_tokens(tokenizer, prompts[0], self.label_words))
        pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return EncodedPrompts([torch.tensor(ids) for ids in encoded], torch.tensor(labels), self.candidates, pad_id)

    def _token_limit(self) -> int | None:
        """The longest prompt in tokens; None where neither the user nor the model sets a limit."""
        try:
            config = AutoConfig.from_pretrained(self.name_or_path, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the configuration of {self.name_or_path}: {_one_line(error)}") from error
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        if self.max_tokens is None or context is None:
            return self.max_tokens or context
        if self.max_tokens > context:
            raise UserError(f"--data.max_tokens {self.max_tokens} is more than the model's context of {context} tokens")
        return self.max_tokens

    def _check_sizes(self, splits: list[str]) -> None:
        _, world = self._place
        for split in splits:
            size = len(self._encoded[split])
            least = self.batch_size * world if split == "train" else world
            if size < least:
                what = f"one batch of {self.batch_size} on each of {world} processes" if split == "train" else ""
                what = what or f"one for each of {world} processes"
                raise UserError(f"there are {size} {split} examples, fewer than the {least} that {what} takes")


def _load_tokenizer(name_or_path: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load a tokenizer from {name_or_path}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
