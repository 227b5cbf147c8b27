"""The correct answers of a batch, for updates that fit them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Answers:
    """The correct answers of a batch whose answers are label words of one token each.

    Attributes:
        examples: Id of each example, shape (batch,), int64. An example that comes again has the same id.
        classes: Index of the correct label word of each example, shape (batch,), int64.
        columns: The position in the input of the output head from which the word is predicted, shape (batch,), int64;
            negative positions count from the end.
    """

    examples: Tensor
    classes: Tensor
    columns: Tensor
