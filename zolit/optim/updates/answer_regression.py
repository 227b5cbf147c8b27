"""Fits the rows of the output head that predict the label words to all examples seen so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zolit.errors import UserError, require
from zolit.optim.answers import Answers
from zolit.optim.base_point import BasePoint, NotFinite
from zolit.optim.blocks import Block, Weight
from zolit.optim.modules.answer_head import head_inputs, probed_head, word_logits
from zolit.optim.randomness import Step
from zolit.optim.updates.base import Update
from zolit.optim.updates.gradient import Gradient
from zolit.optim.updates.logistic import fit_logistic

_TOLERANCE = 0.05
"""Largest difference between the loss of the closure and that of the head, as a share of 1 or of the larger loss. In
bfloat16, logits of 20 are rounded by up to .06; a head whose outputs are scaled differs by tenths."""


class AnswerRegression(Update):
    """Fits P, the rows of the output head for the label words, by a logistic regression on the inputs of the head.

    ``prepare`` makes one forward of the batch, and keeps the input of the head for each example that is new. ``apply``
    fits P to all examples that were kept, on all ranks. If no rank has a new example, the step makes no forward, and P
    stays as it is.

    Args:
        l2: λ, the strength of the penalty; see ``fit_logistic``.

    Raises:
        UserError: If ``l2`` is not positive.
    """

    uses_estimate = False
    needs_answers = True

    def __init__(self, l2: float = 0.3) -> None:
        require(0.0 < l2 < math.inf, f"l2: the penalty must be positive and finite, not {l2}")
        self._l2 = l2
        self._rows_of: dict[int, int] = {}  # by the id of an example
        self._features = torch.empty(0, dtype=torch.float32)
        self._classes = torch.empty(0, dtype=torch.int64)
        self._new: tuple[list[int], Tensor, Tensor] | None = None
        self._checked = False

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Finds the head; see ``Stage.bind``."""
        self._head = probed_head(model)
        if self._head is None:
            raise UserError(
                "update: AnswerRegression needs a model whose output head has rows to fit; use the method "
                "zolit.LinearProbe, which adds them"
            )

    def prepare(self, base: BasePoint) -> None:
        """Makes a forward if there is a new example, and keeps the inputs of the head; see ``Stage.prepare``."""
        answers = base.answers
        if answers is None:
            raise UserError("step: LinearProbe fits the correct answers of a batch; pass them by `answers`")
        self._collectives = base.collectives
        everyone = base.collectives.all_gather(torch.stack([answers.examples, answers.classes]))
        ids: list[int] = everyone[0].tolist()
        fresh = {example: column for column, example in reversed(list(enumerate(ids))) if example not in self._rows_of}
        if not fresh:
            self._recall(base, ids)
            return
        with head_inputs(self._head) as inputs:
            loss = base.loss()
        own = self._at_answers(inputs, answers.columns)
        if not self._checked:
            self._check_loss(base, own, answers, loss)
        gathered = base.collectives.all_gather(own.T.contiguous()).T
        if not gathered.isfinite().all():
            raise NotFinite("an input of the output head")
        columns = sorted(fresh.values())
        self._new = [ids[column] for column in columns], gathered[columns], everyone[1, columns]

    def _at_answers(self, inputs: Sequence[Tensor], columns: Tensor) -> Tensor:
        """Returns the inputs of the head from which the answers are predicted, shape (batch, d), float32."""
        require(
            all(part.ndim == 3 for part in inputs) and sum(map(len, inputs)) == len(columns),
            "step: LinearProbe needs a model that calls its output head once, on an input of the shape (batch, tokens, "
            "width)",
        )
        starts = [sum(map(len, inputs[:part])) for part in range(len(inputs))]
        rows = [
            part[torch.arange(len(part), device=part.device), columns[start : start + len(part)]]
            for part, start in zip(inputs, starts, strict=True)
        ]
        return torch.cat(rows).float()

    def _check_loss(self, base: BasePoint, own: Tensor, answers: Answers, loss: float) -> None:
        """Checks on the first batch that the loss is the one that the regression minimizes."""
        losses = functional.cross_entropy(word_logits(own, self._head.zo_probe), answers.classes)
        mean = float(base.collectives.all_mean(losses.view(1)))
        require(
            abs(mean - loss) <= _TOLERANCE * max(1.0, mean, loss),
            f"model.optimizer: LinearProbe fits the cross-entropy over the label words, which is {mean:.3g} at the "
            f"output head, but the loss of the batch is {loss:.3g}; set model.objective task, or use another method if "
            "the model scales the outputs of its head",
        )
        self._checked = True

    def _recall(self, base: BasePoint, ids: Sequence[int]) -> None:
        """Sets the loss of a batch of known examples, whose inputs of the head are kept."""
        rows = [self._rows_of[example] for example in ids]
        logits = word_logits(self._features[rows], self._head.zo_probe)
        base.recalled_loss = float(functional.cross_entropy(logits, self._classes[rows]))

    def apply(self, weights: Sequence[Weight], gradient: Gradient, lr: float, step: Step) -> None:
        """Keeps the new examples, and fits P to all of them; see ``Update.apply``."""
        if self._new is None:
            return
        (ids, features, classes), self._new = self._new, None
        known = len(self._rows_of)
        self._features = torch.cat([self._features, features]) if known else features
        self._classes = torch.cat([self._classes, classes]) if known else classes
        self._rows_of |= {example: known + place for place, example in enumerate(ids)}
        probe = self._head.zo_probe
        inputs = self._features.double()
        if probe.shape[1] > inputs.shape[1]:  # for the bias
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        fitted = fit_logistic(inputs, self._classes, probe.detach().double(), self._l2)
        probe.data.copy_(self._collectives.broadcast(fitted.to(probe.dtype)))

    def rollback(self) -> None:
        """Drops the new examples; see ``Update.rollback``."""
        self._new = None

    def scratch_bytes(self) -> int:
        """Returns the bytes of the examples that are kept; see ``Stage.scratch_bytes``."""
        return self._features.nbytes + self._classes.nbytes

    def state_dict(self) -> dict[str, Any]:
        """Returns the examples that are kept, shapes (n,), (n, d) and (n,); see ``Stage.state_dict``."""
        ids = torch.tensor(list(self._rows_of), dtype=torch.int64)
        return {"examples": ids, "features": self._features, "classes": self._classes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the examples; see ``Stage.load_state_dict``."""
        self._rows_of = {example: row for row, example in enumerate(state["examples"].tolist())}
        device = self._head.zo_probe.device
        self._features, self._classes = state["features"].to(device), state["classes"].to(device)
