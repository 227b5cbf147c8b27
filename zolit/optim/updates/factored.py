"""A descent with a factored second moment, which keeps one number for each row and each column of a matrix."""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from torch import Tensor

from zolit.errors import require, require_one_of
from zolit.optim.arrivals import Read
from zolit.optim.blocks import Weight
from zolit.optim.buffers import pieces
from zolit.optim.precision import without_autocast
from zolit.optim.randomness import Step
from zolit.optim.updates.rounding import Rounding, Upcaster, rounding_key
from zolit.optim.updates.rule import Chunks

_LEAST_SQUARE = 1e-30  # ε₁ of AdaLomo's code
_LEAST_SCALE = 1e-3  # ε₂


class Factored:
    """Divides gradients by a factored estimate of their size: AdaLomo (arXiv 2310.10195, Algorithm 1), a ``Rule``.

    r and c are moving averages of the mean of g² in each row and each column of a matrix. In step t,

    v = r cᵀ / mean(r),  u = g / √v,  θ ← θ - η max(ε₂, RMS(θ)) u / max(1, RMS(u)),

    where RMS is the root of the mean square over all elements of a weight. A step changes a weight by about η of its
    own size, so that η is far larger than that of Adam. There is no average of g.

    As in AdaLomo's code and in Adafactor (arXiv 1804.04235), the old averages have the weight 1 - t^-0.8 in step t, and
    ε₁ = 1e-30 is added to g². Vectors keep an average for each element. Differences from the code: a tensor of three
    dimensions, such as the experts of a layer, is a list of matrices with r and c of their own. It is not factored if
    that would save less than half of the averages. Weights of one dimension do not decay.

    Args:
        weight_decay: λ: the step also multiplies weights of two or more dimensions by 1 - η max(ε₂, RMS(θ)) λ.
        rounding: How to round the result for weights of 16 bits.

    Raises:
        UserError: If the decay is out of its range, or if the rounding is unknown.
    """

    def __init__(self, weight_decay: float = 0.0, rounding: Rounding = "stochastic") -> None:
        require(0.0 <= weight_decay < math.inf, f"weight_decay: must be at least 0, not {weight_decay}")
        require_one_of("update_rounding", rounding, get_args(Rounding))
        self._weight_decay = weight_decay
        self._rounding = rounding
        self._steps = 0
        self._averages: dict[str, Tensor] = {}
        self._upcaster = Upcaster()

    def begin_step(self) -> None:
        """Counts a step; see ``Rule.begin_step``."""
        self._steps += 1

    def descend(self, weight: Weight, read: Read, chunks: Chunks, lr: float, step: Step) -> None:
        """Moves a weight by its gradient, in three passes over it; see ``Rule.descend``."""
        parameter = weight.parameter
        with without_autocast(parameter.device):
            moment = _Moment(self._averages_of(weight), parameter, max(stop - start for start, stop in chunks))
            moment.learn(read, 1.0 - self._steps**-0.8)
            zero = torch.zeros((), dtype=torch.float32, device=parameter.device)
            squares, sizes = zero, zero
            for start, stop in moment.pieces:
                squares = squares + moment.scaled(read, start, stop).square().sum()
                sizes = sizes + weight.flat[start:stop].float().square().sum()
            numel = parameter.numel()
            rate = lr * (sizes / numel).sqrt().clamp(min=_LEAST_SCALE)
            factor = rate / (squares / numel).sqrt().clamp(min=1.0)
            for start, stop in moment.pieces:
                key = rounding_key(self._rounding, step, weight, start)
                with self._upcaster.upcast([weight.flat[start:stop]], key) as (piece,):
                    if self._weight_decay and parameter.ndim > 1:
                        piece.mul_(1.0 - rate * self._weight_decay)
                    piece.sub_(moment.scaled(read, start, stop).mul_(factor))

    def _averages_of(self, weight: Weight) -> Tensor:
        """Returns r of all matrices, then c of all matrices, or one average for each element; float32, shape (m,)."""
        averages = self._averages.get(weight.name)
        if averages is None:
            count, rows, columns = _matrices(weight.parameter)
            averages = torch.zeros(count * (rows + columns) if columns else rows, dtype=torch.float32)
        self._averages[weight.name] = averages.to(weight.parameter.device)
        return self._averages[weight.name]

    def scratch_bytes(self) -> int:
        """Returns the bytes of the averages and of the rounding buffers; see ``Stage.scratch_bytes``."""
        return self._upcaster.scratch_bytes() + sum(averages.nbytes for averages in self._averages.values())

    def state_dict(self) -> dict[str, Any]:
        """Returns r and c by the names of the weights; see ``Stage.state_dict``."""
        return {"steps": self._steps, "averages": dict(self._averages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores r and c, in float32 for all types of weights; see ``Stage.load_state_dict``."""
        self._steps = state["steps"]
        self._averages = {name: own.clone() for name, own in state["averages"].items()}


class _Moment:
    """The averages of one weight, in the pieces in which they can be used.

    Attributes:
        pieces: (start, stop) of the pieces; each consists of whole rows of one matrix.
    """

    def __init__(self, averages: Tensor, parameter: Tensor, most: int) -> None:
        count, rows, columns = _matrices(parameter)
        self._rows, self._columns = rows, columns
        if not columns:
            self._whole = averages
            self.pieces = pieces(torch.Size([rows]), most)
            return
        self._r = averages[: count * rows].view(count, rows)
        self._c = averages[count * rows :].view(count, columns)
        own = pieces(torch.Size([rows, columns]), max(most, columns))
        size = rows * columns
        self.pieces = [(i * size + start, i * size + stop) for i in range(count) for start, stop in own]

    def learn(self, read: Read, keep: float) -> None:
        """Moves the averages towards g²; the old ones have the weight ``keep``."""
        if not self._columns:
            for start, stop in self.pieces:
                self._whole[start:stop].mul_(keep).add_(read(start, stop).square().add_(_LEAST_SQUARE), alpha=1 - keep)
            return
        self._c.mul_(keep)
        for start, stop in self.pieces:
            matrix, first, last = self._place(start, stop)
            squares = read(start, stop).view(-1, self._columns).square().add_(_LEAST_SQUARE)
            self._r[matrix, first:last].mul_(keep).add_(squares.mean(1), alpha=1 - keep)
            self._c[matrix].add_(squares.sum(0), alpha=(1 - keep) / self._rows)

    def scaled(self, read: Read, start: int, stop: int) -> Tensor:
        """Returns a piece of u, shape (stop - start,), float32; it is the caller's."""
        if not self._columns:
            return read(start, stop) * self._whole[start:stop].rsqrt()
        matrix, first, last = self._place(start, stop)
        mean = self._r[matrix].mean()
        scaled = read(start, stop).view(-1, self._columns) * (self._r[matrix, first:last] / mean).rsqrt_().unsqueeze(1)
        return scaled.mul_(self._c[matrix].rsqrt()).view(-1)

    def _place(self, start: int, stop: int) -> tuple[int, int, int]:
        """Returns the matrix of a piece, its first row and the row after its last."""
        first, last = start // self._columns, stop // self._columns
        matrix = first // self._rows
        return matrix, first - matrix * self._rows, last - matrix * self._rows


def _matrices(parameter: Tensor) -> tuple[int, int, int]:
    """Returns the number of matrices of a weight, their rows and columns; (1, elements, 0) if it is not factored."""
    if parameter.ndim > 1:
        rows, columns = parameter.shape[-2:]
        count = parameter.numel() // (rows * columns)
        if 2 * (rows + columns) <= rows * columns:
            return count, rows, columns
    return 1, parameter.numel(), 0
