"""Moves what writes into the residual stream, by a gradient that is carried down without a backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zolit.errors import require
from zolit.optim.base_point import BasePoint, TailGradients
from zolit.optim.blocks import Block, Weight
from zolit.optim.collectives import Collectives
from zolit.optim.feedback.head import HeadProbes
from zolit.optim.feedback.jacobians import Jacobians
from zolit.optim.feedback.saved import read_jacobians
from zolit.optim.feedback.stream import ResidualStream, watched_inputs
from zolit.optim.feedback.writers import Writer, finding_writers
from zolit.optim.precision import without_autocast
from zolit.optim.randomness import Step
from zolit.optim.updates.base import Update
from zolit.optim.updates.gradient import Gradient
from zolit.optim.updates.rule import Rule, signature_of, state_of_rule

_ALL_COLUMNS = 1 << 30


class Feedback(Update):
    """Moves by S_W = Σ δ xᵀ each matrix W that writes into the residual stream; x is the input of W.

    δ at the last hidden state is exact: autograd runs through the final norm, the head and the loss, and no further.
    Without a gradient, probes of these three estimate it (``HeadProbes``). It is carried down by
    δ_l = (I + A_l)ᵀ δ_{l+1}, where A_l is the mean Jacobian of what layer l adds (``Jacobians``). All writers of a
    layer take δ at the output of the layer, through the norms that lie between. The sum is over the tokens where δ is
    not zero. The method is of this project.

    The first step makes one forward more, to find the writers, and the forwards with noise of ``Jacobians``, unless a
    file has the Jacobians. Later steps make one forward, and one more where the Jacobians are corrected. If the loss
    looks at more tokens than in the steps before, a step makes it again.

    Args:
        rule: Moves a weight by its S.
        layers: How many layers, counted from the last, are trained; None is two thirds.
        calibration: Number of forwards with noise in the first step; 0 takes the layers for the identity.
        refresh: Number of steps from one correction of the Jacobians to the next. It makes one forward with noise more.
            0 corrects nothing.
        head: Whether the weights after the last layer are trained too, by their exact gradients.
        jacobians: A file of ``zolit calibrate``, whose Jacobians are taken in place of a calibration. It is read in the
            first step, and not in a resumed run, whose state has the Jacobians.
        head_probes: Number of pairs of moves of the last hidden state in a step, if the losses have no gradient.

    Raises:
        UserError: If a number is out of its range, or the model has no list of layers.
    """

    uses_estimate = False
    needs_row_losses = True

    def __init__(
        self,
        rule: Rule,
        layers: int | None = None,
        calibration: int = 16,
        refresh: int = 10,
        head: bool = False,
        jacobians: str | None = None,
        head_probes: int = 64,
    ) -> None:
        require(layers is None or layers >= 1, f"layers: at least 1 layer is trained, not {layers}")
        require(head_probes >= 1, f"head_probes: at least 1 pair of moves is needed, not {head_probes}")
        require(calibration >= 0, f"calibration: the number of forwards must be at least 0, not {calibration}")
        require(refresh >= 0, f"refresh: the number of steps must be at least 0, not {refresh}")
        self._rule = rule
        self._num_layers = layers
        self._calibration = calibration if jacobians is None else 0
        self._refresh = refresh
        self._file = jacobians
        self._pairs = head_probes
        self._head = head
        self._columns = 1
        self._writers: list[Writer] | None = None
        self._found: list[Writer] = []
        self._inputs: dict[str, list[Tensor]] = {}
        self._delta = torch.empty(0)
        self._tail: dict[Weight, Tensor] = {}
        self._collectives = Collectives()

    @property
    def signature(self) -> str:
        """The name of the rule too; see ``Stage.signature``."""
        return signature_of(self._rule, "Feedback")

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Finds the layers; see ``Stage.bind``."""
        self._model = model
        self._stream = ResidualStream(model)
        self._probes = HeadProbes(self._stream, self._pairs)
        layers = self._stream.layers
        trained = -(-2 * len(layers) // 3) if self._num_layers is None else self._num_layers
        require(trained <= len(layers), f"layers: the model has {len(layers)} layers, so {trained} cannot be trained")
        self._first = len(layers) - trained
        inner = list(layers)[self._first + 1 :]
        self._jacobians = Jacobians({name: layers[name] for name in inner}, self._calibration, self._refresh)
        self._file = self._file if inner else None
        self._weights = {id(weight.parameter): weight for weight in weights}
        held = {id(p) for layer in layers.values() for p in layer.parameters()}
        self._outside = [weight for weight in weights if self._head and id(weight.parameter) not in held]

    def prepare(self, base: BasePoint) -> None:
        """Computes δ at the last hidden state, and keeps the inputs of the writers; see ``Stage.prepare``."""
        self._collectives = base.collectives
        self._found = self._find_writers(base) if self._writers is None else self._writers
        due = self._jacobians.is_due(base.step)
        columns = self._columns
        tail = self._forward(base, columns, due)
        while tail.beyond:
            columns = self._columns_of(tail, base.collectives)
            tail = self._forward(base, columns, due)
        if due:
            self._jacobians.learn(base)
        if self._file is not None and not self._jacobians.learned:
            self._read_jacobians(self._file, tail.deltas[0].shape[-1])
        self._columns = columns
        self._tail = tail.weights
        with without_autocast(tail.deltas[0].device):
            self._delta = torch.cat([_last(delta, columns).flatten(0, -2) for delta in tail.deltas])

    def _read_jacobians(self, file: str, width: int) -> None:
        names = list(self._stream.layers)
        inner = range(self._first + 1, len(names))
        found = read_jacobians(file, self._model, len(names), inner, width)
        self._jacobians.load({names[index]: own for index, own in zip(inner, found, strict=True)})

    def _find_writers(self, base: BasePoint) -> list[Writer]:
        with finding_writers(self._model, self._stream, self._first) as found:
            base.loss()
        writers = [writer for writer in found if self._trains(writer.module) or self._trains(writer.feeder)]
        require(
            bool(writers or self._outside),
            "model.optimizer: DirectFeedback found no trainable matrix in the last "
            f"{len(self._stream.layers) - self._first} layers whose product is added to the hidden state; train such "
            "weights (model.tuning; for LoRA, targets such as [o_proj, down_proj]), or use another method",
        )
        return writers

    def _trains(self, module: str) -> bool:
        return bool(module) and id(self._parameter(module, "weight")) in self._weights

    def _parameter(self, module: str, name: str) -> nn.Parameter | None:
        return self._model.get_submodule(module)._parameters.get(name)

    def _forward(self, base: BasePoint, columns: int, is_watched: bool) -> TailGradients:
        """Makes a forward, and keeps the inputs of writers, of their feeders and of norms at the last columns."""
        names = {name for w in self._found for name in (w.module, w.feeder, *w.norms) if name}
        self._inputs = {name: [] for name in sorted(names)}

        def on_input(name: str, value: Tensor) -> None:
            rows = self._stream.rows  # some layers join batch and tokens
            self._inputs[name].append(_last(value.reshape(*rows, -1), columns).clone())

        with ExitStack() as contexts:
            contexts.enter_context(watched_inputs({n: self._model.get_submodule(n) for n in names}, on_input))
            if is_watched:
                contexts.enter_context(self._jacobians.watching(self._model, base.step))
            made = base.tail_loss(self._stream.tail(), self._outside)
        return base.tail_gradients(made, self._outside, columns, lambda made: self._probes.deltas(base, made))

    def _columns_of(self, tail: TailGradients, collectives: Collectives) -> int:
        """Returns how many columns to keep so that δ is zero in all others, on all ranks, with some to spare."""
        needed = 1
        for delta in tail.deltas:
            if delta.ndim > 2:
                used = delta.any(-1).any(0).nonzero()
                width = delta.shape[1]
                own = width - int(used[0]) if len(used) else 1
                needed = max(needed, own if 2 * own <= width else _ALL_COLUMNS)
        return min(2 * int(collectives.all_gather(torch.tensor([needed])).max()), _ALL_COLUMNS)

    def rollback(self) -> None:
        """Drops what ``prepare`` computed; see ``Update.rollback``."""
        self._inputs, self._tail, self._delta = {}, {}, torch.empty(0)
        self._stream.forget()
        self._jacobians.forget()

    def apply(self, weights: Sequence[Weight], gradient: Gradient, lr: float, step: Step) -> None:
        """Moves one matrix after the other by its S; see ``Update.apply``."""
        self._rule.begin_step()
        self._writers = self._found
        self._jacobians.keep(self._collectives)
        for weight, own in self._gradients():
            flat = self._collectives.all_mean(own).flatten()
            self._move(weight, flat, gradient, lr, step)
        for weight, own in self._tail.items():
            self._move(weight, own.flatten(), gradient, lr, step)
        self.rollback()

    def _move(self, weight: Weight, flat: Tensor, gradient: Gradient, lr: float, step: Step) -> None:
        def read(start: int, stop: int) -> Tensor:
            return flat[start:stop].float()

        self._rule.descend(weight, read, gradient.directions.chunks(weight), lr, step)

    def _gradients(self) -> Iterator[tuple[Weight, Tensor]]:
        """Yields the trained weights of the writers with their S, from the last layer down, one at a time, float32."""
        names, delta = list(self._stream.layers), self._delta
        for index in range(len(names) - 1, self._first - 1, -1):
            for writer in self._found:
                if writer.layer == index:
                    yield from self._of_writer(writer, delta)
            if index > self._first:
                with without_autocast(delta.device):
                    delta = self._jacobians.pulled_back(names[index], delta)

    def _of_writer(self, writer: Writer, delta: Tensor) -> Iterator[tuple[Weight, Tensor]]:
        with without_autocast(delta.device):
            delta = self._before_norms(writer, delta)
            yield from self._products(writer.module, writer.transposed, delta)
            if writer.feeder:
                matrix = self._parameter(writer.module, "weight")
                assert matrix is not None
                wide = matrix.detach().float()
                fed = delta @ (wide.t() if writer.transposed else wide)
                yield from self._products(writer.feeder, writer.feeder_transposed, fed)

    def _products(self, module: str, transposed: bool, delta: Tensor) -> Iterator[tuple[Weight, Tensor]]:
        weight, bias = (self._weights.get(id(self._parameter(module, name))) for name in ("weight", "bias"))
        if weight is not None:
            x = self._rows(module, delta)
            yield weight, (x.t() @ delta if transposed else delta.t() @ x)
        if bias is not None:
            yield bias, delta.sum(0)

    def _rows(self, module: str, delta: Tensor) -> Tensor:
        """Returns the inputs of a module at the kept tokens, shape (tokens, inputs), float32; 0 where δ is 0."""
        rows = torch.cat([value.flatten(0, -2) for value in self._inputs[module]]).float()
        return rows.masked_fill(~delta.any(1, keepdim=True), 0.0)

    def _before_norms(self, writer: Writer, delta: Tensor) -> Tensor:
        """Returns δ at the output of a writer, shape (tokens, d): from that of its layer, through the norms between."""
        for place in reversed(writer.path):
            if isinstance(place, float):
                delta = delta * place
                continue
            norm = self._model.get_submodule(place)
            wide = {name: parameter.detach().float() for name, parameter in norm.named_parameters()}
            with torch.enable_grad():
                rows = self._rows(place, delta).requires_grad_()
                (delta,) = torch.autograd.grad(functional_call(norm, wide, (rows,)), rows, delta)
        return delta

    def scratch_bytes(self) -> int:
        """Returns the bytes of the rule, the Jacobians, δ and the kept inputs; see ``Stage.scratch_bytes``."""
        inputs = [value for values in self._inputs.values() for value in values]
        held = [*self._jacobians.learned.values(), self._delta, *self._tail.values(), *inputs]
        return self._rule.scratch_bytes() + sum(tensor.nbytes for tensor in held)

    def state_dict(self) -> dict[str, Any]:
        """Returns the writers, the Jacobians and the state of the rule; see ``Stage.state_dict``."""
        writers = None if self._writers is None else [tuple(writer) for writer in self._writers]
        return {
            "rule": self._rule.state_dict(),
            "jacobians": dict(self._jacobians.learned),
            "writers": writers,
            "columns": self._columns,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned; see ``Stage.load_state_dict``."""
        self._rule.load_state_dict(state_of_rule(state))
        self._jacobians.load(state["jacobians"])
        self._writers = None if state["writers"] is None else [Writer(*writer) for writer in state["writers"]]
        self._columns = state["columns"]


def _last(rows: Tensor, columns: int) -> Tensor:
    """Returns the last columns of rows of tokens, shape (batch, columns, width); all of (batch, width)."""
    return rows[:, -columns:] if rows.ndim > 2 else rows
