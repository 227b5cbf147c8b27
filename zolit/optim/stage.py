"""The interface that all five stages of a step share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import Block, Weight


class Stage:
    """One of the five parts of a step. The optimizer binds it once, and saves its state in checkpoints."""

    @property
    def signature(self) -> str:
        """What must be equal between two runs for one to go on with the state of the other. Called with checkpoints."""
        return type(self).__name__

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Receives the model. Called once, by the optimizer's constructor; for an inner stage, by the outer stage.

        Args:
            model: The model to tune.
            weights: All trainable weights of the model.
            blocks: The same weights, partitioned into blocks.
        """

    def prepare(self, base: BasePoint) -> None:
        """Evaluates the model at θ, if the stage needs that. Called once a step, before ``Selection.select``.

        The optimizer calls it on the update first, then on the selection, then on the perturbation. It does not call it
        on probers and estimators. Each rank has a different batch. If a stage learns from it, the stage must make the
        result equal on all ranks by ``base.collectives``.

        Args:
            base: Evaluates the loss or the gradient at θ. An evaluation raises ``NotFinite`` if the loss is not finite.
                The step is then skipped, and the state of the stage must be the same as before the call.
        """

    def scratch_bytes(self) -> int:
        """Returns the bytes that the stage holds in addition to the weights. Called when memory is reported."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that a resumed run needs, by name. Called when a checkpoint is saved.

        The values are tensors and plain Python values. The tensors are those of the stage, as in torch's optimizers: a
        copy would take as much memory again. Copy the result to keep it beyond the next step.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned. Called once, after ``bind``, when a run resumes.

        Tensors that the stage changes in place are copied, so that the given state keeps its values.
        """
