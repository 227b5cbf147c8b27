"""What a task is: how a record becomes a question, which answers there are, and how an answer is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

Record = Mapping[str, Any]


@dataclass(frozen=True)
class DatasetSplits:
    """Which split of a data set plays which part.

    Args:
        train: Split to train on; null for none.
        validation: Split to validate on; null for none. Where it is the one to train on, other examples are taken.
        test: Split to test on; null for none.
    """

    train: str | None = "train"
    validation: str | None = "validation"
    test: str | None = "test"


@dataclass(frozen=True, slots=True)
class Question:
    """What a record asks.

    Attributes:
        prompt: The text that is to be gone on with.
        answers: The texts that may follow it, one of which is right; where the answer is written and not chosen, the
            one to train on.
    """

    prompt: str
    answers: tuple[str, ...]


class Task(ABC):
    """A task; subclasses are a few lines each, and stand in a file of their own.

    Attributes:
        dataset: Hub id of its data set; None where the user's files are all there is.
        dataset_config: Configuration of the data set on the hub.
        metrics: Names of the scores that are logged as ``val/...``; the first decides which checkpoint is best. Where
            answers are chosen: accuracy, and with label words macro_f1; where they are written, what ``judge`` returns.
        as_language: Whether the likelihood of the right answer is trained, rather than the choice among all, as MeZO
            (arXiv 2305.17333) does where answers are long.
        written: Whether the model writes its answer, which then is judged by ``judge``.
        new_tokens: How many tokens an answer that is written may have.
    """

    dataset: ClassVar[str | None] = None
    dataset_config: ClassVar[str | None] = None
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    as_language: ClassVar[bool] = False
    written: ClassVar[bool] = False
    new_tokens: ClassVar[int] = 50

    @property
    def splits(self) -> DatasetSplits:
        """Which split plays which part: MeZO's set-up for a data set of the task's own, else the parts' own names."""
        return DatasetSplits("train", "train", "validation") if self.dataset else DatasetSplits()

    @abstractmethod
    def inputs(self) -> Mapping[str, Sequence[str]]:
        """Returns the columns that a prompt is made of, under the name of what asks for them."""

    @abstractmethod
    def targets(self) -> Mapping[str, Sequence[str]]:
        """Returns the columns that say what is right, under the name of what asks for them."""

    @abstractmethod
    def question(self, record: Record) -> Question:
        """Returns what a record asks; it has all columns of ``inputs``, and those of ``targets`` but in prediction."""

    def bare(self, record: Record) -> Record:
        """Returns the record with nothing in the columns of ``inputs``: calibrated scores are measured against it."""
        return {**record, **{column: "" for columns in self.inputs().values() for column in columns}}

    @abstractmethod
    def right(self, record: Record) -> tuple[int, ...]:
        """Returns which answers of the question are right, at least one; the first is trained on.

        Raises:
            UserError: If the record does not say so; the message goes on after the record's name.
        """

    def masked_prompt(self, record: Record, mask: str) -> str:
        """Returns the prompt for a model that fills in a mask.

        Args:
            record: As for ``question``.
            mask: The mask, as a text.
        """
        return f"{self.question(record).prompt.rstrip()} {mask}."

    def accepted(self, record: Record) -> tuple[str, ...]:
        """Returns the answers that a written one is judged by."""
        return self.question(record).answers

    def judge(self, answer: str, accepted: Sequence[str]) -> dict[str, float]:
        """Judges a written answer.

        Args:
            answer: What the model wrote.
            accepted: Answers of which each would do.

        Returns:
            Scores between 0 and 1, by the names in ``metrics``.
        """
        raise NotImplementedError
