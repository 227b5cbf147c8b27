"""The view of a weight that computes with θ + Σ cᵢuᵢ, while θ itself is never written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zolit.optim.probing.streamed.probe import NotJointError, Probe, Query
from zolit.optim.probing.streamed.products import embedding, linear, scale
from zolit.optim.probing.views import WeightView


class PerturbedWeight(WeightView):
    """Replaces a weight in its module, and computes with θ + Σ cᵢuᵢ.

    ``linear`` perturbs a matrix in a buffer that is reused, and a large matrix piece by piece. ``embedding`` perturbs
    the rows that are looked up and no others. Every other function gets a perturbed copy, which is freed afterwards. If
    a forward answers several queries, each copy of the batch is computed at a separate query. The copies are along the
    first dimension of the activations.
    """

    probe: Probe

    @classmethod
    def compute(cls, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Computes a function with θ + Σ cᵢuᵢ; see ``WeightView.compute``."""
        weight = args[1] if len(args) > 1 and not isinstance(args[0], cls) else None
        if isinstance(weight, PerturbedWeight) and weight.probe.row(weight):
            if func is functional.linear:
                bias = args[2] if len(args) > 2 else kwargs.get("bias")
                biases = [bias.probe.at(bias, q) if isinstance(bias, cls) else bias for q in weight.probe.queries]
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
    args, kwargs = _replace((args, kwargs), lambda t: t.probe.at(t, query) if isinstance(t, PerturbedWeight) else t)
    return func(*args, **kwargs)


def _each_copy(func: Callable[..., Any], args: Any, kwargs: Any, probe: Probe) -> Tensor:
    """Calls a function once for each copy of the batch, with every weight at the query of the copy."""
    parts: list[Tensor] = []
    for index, query in enumerate(probe.queries):
        found = False

        def cut(tensor: Tensor, index: int = index) -> Tensor:
            nonlocal found
            if isinstance(tensor, nn.Parameter):  # views and frozen weights, which are not activations
                return tensor
            found = True
            return probe.copies(tensor)[index]

        own_args, own_kwargs = _replace((args, kwargs), cut)
        part = _compute(func, own_args, own_kwargs, query)
        if not found or not isinstance(part, Tensor):
            raise NotJointError
        parts.append(part)
    return torch.cat(parts)
