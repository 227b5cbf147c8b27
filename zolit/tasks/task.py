"""The interface of a task: it turns records into questions, knows the correct answers, and scores generated answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

Record = Mapping[str, Any]


@dataclass(frozen=True)
class DatasetSplits:
    """Names the split of a data set for each part of the data.

    Args:
        train: Split to train on; null for none.
        validation: Split to validate on; null for none. If this is also the split to train on, other examples are used.
        test: Split to test on; null for none.
    """

    train: str | None = "train"
    validation: str | None = "validation"
    test: str | None = "test"


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its possible answers.

    Attributes:
        prompt: The text that the model continues.
        answers: The texts that may follow the prompt. In tasks with generated answers, this is the one answer to train
            on.
    """

    prompt: str
    answers: tuple[str, ...]


class Task(ABC):
    """Defines prompts, answers and metrics for the records of a data set.

    Each subclass is a few lines in its own file.

    Attributes:
        dataset: Hub id of the task's data set; None if the task has only the user's files.
        dataset_config: Configuration of the data set on the hub.
        metrics: Names of the scores, logged as ``val/...``; the first one decides which checkpoint is best. Tasks with
            choices have accuracy and, with label words, macro_f1. Tasks with generated answers have the keys that
            ``judge`` returns. ``Text`` has perplexity.
        lower_is_better: Whether the metrics are better when they are smaller, and are no shares from 0 to 1.
        train_on_likelihood: Whether training maximizes the likelihood of the correct answer, rather than the
            probability of the correct choice among all. MeZO (arXiv 2305.17333) does so where answers are long.
        generates: Whether the model generates the answer, and ``judge`` scores it.
        max_new_tokens: The longest generated answer, in tokens.
    """

    dataset: ClassVar[str | None] = None
    dataset_config: ClassVar[str | None] = None
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    lower_is_better: ClassVar[bool] = False
    train_on_likelihood: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    max_new_tokens: ClassVar[int] = 50

    @property
    def splits(self) -> DatasetSplits:
        """The splits of the data set: those of MeZO if the task names a data set, else the parts' own names."""
        return DatasetSplits("train", "train", "validation") if self.dataset else DatasetSplits()

    @abstractmethod
    def inputs(self) -> Mapping[str, Sequence[str]]:
        """Returns the columns that the prompt needs, under the name of the option or task that needs them."""

    @abstractmethod
    def targets(self) -> Mapping[str, Sequence[str]]:
        """Returns the columns that hold the correct answer, under the name of the option or task that needs them."""

    @abstractmethod
    def question(self, record: Record) -> Question:
        """Returns the prompt and the answers of a record.

        Args:
            record: Has all columns of ``inputs`` and, except in prediction, those of ``targets``.

        Raises:
            UserError: If a value cannot be read as text. The message continues after the record's name.
        """

    def content_free(self, record: Record) -> Record:
        """Returns the record with empty ``inputs``. Calibrated scores subtract the score of this record's prompt."""
        return {**record, **{column: "" for columns in self.inputs().values() for column in columns}}

    @abstractmethod
    def correct_answers(self, record: Record) -> tuple[int, ...]:
        """Returns the indices of the correct answers of the question, at least one. Training uses the first.

        Raises:
            UserError: If the record has no valid label. The message continues after the record's name.
        """

    def masked_prompt(self, record: Record, mask: str) -> str:
        """Returns the prompt for a masked language model.

        Args:
            record: See ``question``.
            mask: The mask token, as text.
        """
        return f"{self.question(record).prompt.rstrip()} {mask}."

    def references(self, record: Record) -> tuple[str, ...]:
        """Returns the acceptable answers, with which a generated answer is compared."""
        return self.question(record).answers

    def judge(self, answer: str, references: Sequence[str]) -> dict[str, float]:
        """Scores a generated answer. Called in validation and testing, and in training on a metric.

        Args:
            answer: The generated answer.
            references: The acceptable answers.

        Returns:
            Scores between 0 and 1, by the names in ``metrics``.
        """
        raise NotImplementedError
