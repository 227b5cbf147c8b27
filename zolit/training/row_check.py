"""Checks that a model gives an example in a batch the loss that it has alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor

from zolit.errors import require
from zolit.models.batches import AnswerBatch, Batch, micro_batches
from zolit.models.language_model import LanguageModel
from zolit.training.objective import Objective

_ROUNDING: dict[torch.dtype | None, float] = {torch.float64: 1e-3, torch.float32: 1e-2}
_ROUNDING_OF_16_BITS = 0.15
"""Differences of a loss that arithmetic explains, for losses up to 1; larger losses may differ by this share."""


class RowCheck:
    """Compares the loss of one example in its batch with that of the same example alone, once.

    Some architectures ignore the mask of padding, or count positions from the start of a padded row. Their losses then
    depend on the other examples of a batch. The example with the most padding shows this best.

    Args:
        is_wanted: Whether to check at all.
    """

    def __init__(self, is_wanted: bool) -> None:
        self._is_due = is_wanted

    @torch.no_grad()
    def __call__(
        self, batch: Batch, losses: Callable[[], Tensor], objective: Objective, language: LanguageModel
    ) -> None:
        """Checks the first batch. Called with every batch of a training step, a validation or a test.

        The check costs one forward of one example, and on a GPU three waits of the host.

        Args:
            batch: A batch, padded.
            losses: Returns the loss of each example in the batch, shape (batch,).
            objective: The objective. Scores of answers jump, so they are not compared.
            language: The model.

        Raises:
            UserError: If the two losses differ by more than rounding.
        """
        if not self._is_due:
            return
        self._is_due = False
        mask = batch.prompt_mask if isinstance(batch, AnswerBatch) else batch.attention_mask
        lengths = mask.sum(1)
        row = int(lengths.argmin())
        if not objective.is_likelihood or int(lengths[row]) == mask.shape[1]:
            return
        (alone,) = islice(micro_batches(batch, 1), row, row + 1)
        together, single = float(losses()[row]), float(objective.losses(language, alone)[0])
        weight = next(language.model.parameters())
        dtype = None if torch.is_autocast_enabled(weight.device.type) else weight.dtype
        allowed = _ROUNDING.get(dtype, _ROUNDING_OF_16_BITS) * max(1.0, abs(single))
        require(
            not abs(together - single) > allowed,
            f"model: {type(language.model).__name__} gives an example the loss {together:.4g} in a batch, and "
            f"{single:.4g} alone, so that it does not ignore padding; set model.micro_batch_size and "
            "data.eval_batch_size to 1, or model.check_rows to false if you know why",
        )
