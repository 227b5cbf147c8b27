"""A weight that is seen as θ + Σ cᵢuᵢ by whoever computes with it, while θ itself is never written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zolit.directions import Directions
from zolit.probing.products import NotJointError, Query, copies, embedding, linear, scale
from zolit.probing.views import WeightView
from zolit.scratch import Scratch


class Probe:
    """What all perturbed weights of one step have in common.

    Args:
        directions: u_1 ... u_k.
        scratch: Where matrices are perturbed: a buffer for each type.

    Attributes:
        queries: What the present forward answers: a row of C for each copy of the batch.
        examples: Examples in a copy of the batch.
    """

    def __init__(self, directions: Directions, scratch: dict[torch.dtype, Scratch]) -> None:
        self.directions = directions
        self.scratch = scratch
        self.queries: Sequence[Query] = ()
        self.examples = 1


class PerturbedWeight(WeightView):
    """Stands where a module looks for a weight, and computes with θ + Σ cᵢuᵢ.

    ``linear`` perturbs a matrix in a buffer that is used again, a large one piece by piece; ``embedding`` perturbs the
    rows that are looked up and no others. Whatever else is computed gets a perturbed copy, freed thereafter. Where a
    forward answers several queries, each copy of the batch (along the first dimension of the activations) meets its
    own.
    """

    probe: Probe
    _pieces: Sequence[tuple[int, int, Tensor]] = ()

    @property
    def row(self) -> int:
        """Length of a row of a matrix whose pieces are whole rows; 0 for other weights."""
        width = self.theta.shape[-1] if self.theta.ndim == 2 else 0
        return width if width <= self.probe.directions.chunk else 0

    @property
    def pieces(self) -> Sequence[tuple[int, int, Tensor]]:
        """The (start, stop, θ) of the pieces in which the weight is perturbed, θ of shape (stop - start,)."""
        if not self._pieces:
            flat = self.theta.view(-1)
            ranges = self.probe.directions.ranges(self.weight)
            self._pieces = [(start, stop, flat[start:stop]) for start, stop in ranges]
        return self._pieces

    def at(self, query: Query) -> Tensor:
        """Returns the weight at a query, in memory of its own."""
        values = torch.empty_like(self.theta)
        flat, pieces = values.view(-1), self.pieces
        for start, stop, origin in pieces:
            out = flat if len(pieces) == 1 else flat[start:stop]
            self.probe.directions.perturb(origin, out, self.weight, start, stop, query)
        return values

    @classmethod
    def compute(cls, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Computes with θ + Σ cᵢuᵢ."""
        weight = args[1] if len(args) > 1 and not isinstance(args[0], cls) else None
        if isinstance(weight, PerturbedWeight) and weight.row:
            if func is functional.linear:
                bias = args[2] if len(args) > 2 else kwargs.get("bias")
                biases = [bias.at(q) if isinstance(bias, cls) else bias for q in weight.probe.queries]
                return linear(args[0], weight, biases)
            if func is functional.embedding and kwargs.get("max_norm") is None:
                return embedding(args[0], weight)
        if func is Tensor.mul and all(isinstance(factor, Tensor) for factor in args):
            activations, vector = args if isinstance(args[1], cls) else args[::-1]
            if vector.ndim == 1 and activations.ndim > 1 and not isinstance(activations, cls):
                return scale(activations, vector)
        weights: list[PerturbedWeight] = []
        _replace((args, kwargs), lambda tensor: weights.append(tensor) if isinstance(tensor, cls) else None)
        probe = weights[0].probe
        if len(probe.queries) == 1:
            return _compute(func, args, kwargs, probe.queries[0])
        return _each_copy(func, args, kwargs, probe)


def _replace(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Changes the tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        items = [_replace(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {name: _replace(item, change) for name, item in value.items()}
    return value


def _compute(func: Callable[..., Any], args: Any, kwargs: Any, query: Query) -> Any:
    """Calls a function with every weight at a query."""
    args, kwargs = _replace((args, kwargs), lambda t: t.at(query) if isinstance(t, PerturbedWeight) else t)
    return func(*args, **kwargs)


def _each_copy(func: Callable[..., Any], args: Any, kwargs: Any, probe: Probe) -> Tensor:
    """Calls a function once for each copy of the batch, with every weight at its query."""
    parts: list[Tensor] = []
    for index, query in enumerate(probe.queries):
        found = False

        def cut(tensor: Tensor, index: int = index) -> Tensor:
            nonlocal found
            if isinstance(tensor, nn.Parameter):  # a perturbed weight counts as one, and frozen ones are no activations
                return tensor
            found = True
            return copies(tensor, probe)[index]

        own_args, own_kwargs = _replace((args, kwargs), cut)
        part = _compute(func, own_args, own_kwargs, query)
        if not found or not isinstance(part, Tensor):
            raise NotJointError
        parts.append(part)
    return torch.cat(parts)
