"""Products with perturbed weights: a matrix, the rows that are looked up in it, and a vector of scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from zolit.scratch import Scratch

if TYPE_CHECKING:
    from zolit.probing.perturbed import PerturbedWeight, Probe

_WHOLE = 2

Query = Sequence[float]
"""A row of C, shape (k,)."""


class NotJointError(Exception):
    """A module computes something in which the copies of the batch cannot be told apart."""


def copies(activations: Tensor, probe: Probe) -> Sequence[Tensor]:
    """Cuts activations into those of each copy of the batch.

    Raises:
        NotJointError: If their first dimension cannot be the batch's, alone or flattened with others.
    """
    count = len(probe.queries)
    if count > 1 and (not activations.ndim or activations.shape[0] % (count * probe.examples)):
        raise NotJointError
    return activations.chunk(count) if count > 1 else (activations,)


def linear(inputs: Tensor, weight: PerturbedWeight, biases: Sequence[Tensor | None]) -> Tensor:
    """Computes x Wᵀ + b at the queries of the weight's probe.

    A matrix of up to two chunks is perturbed in a scratch buffer and multiplied with as a whole. Of a larger one, an
    output head above all, never more than a piece is in memory: its rows give so many columns of the result.

    Args:
        inputs: x, shape (..., d), the copies of the batch along the first dimension.
        weight: W, shape (n, d), in pieces of whole rows.
        biases: b at each query, shape (n,), or None.

    Returns:
        Shape (..., n).

    Raises:
        NotJointError: If the first dimension is not the batch's.
    """
    queries, theta = weight.probe.queries, weight.theta
    rows, width = theta.shape
    if len(queries) > 1 and inputs.ndim == 1:
        raise NotJointError
    parts = copies(inputs.reshape(-1, width), weight.probe)
    whole = theta.numel() <= _WHOLE * weight.probe.directions.chunk
    cast = torch.is_autocast_enabled(inputs.device.type)
    pieces = weight.pieces
    if whole and len(queries) == 1:
        (matrix,) = _perturbed(weight, pieces)
        return functional.linear(parts[0], matrix, biases[0]).view(*inputs.shape[:-1], rows)
    groups = [pieces] if whole else [[piece] for piece in pieces]
    dtype = torch.get_autocast_dtype(inputs.device.type) if cast else inputs.dtype
    result = torch.empty(len(queries), len(parts[0]), rows, dtype=dtype, device=inputs.device)
    for group in groups:
        first, last = group[0][0] // width, group[-1][1] // width
        for part, matrix, bias, out in zip(parts, _perturbed(weight, group), biases, result, strict=True):
            columns = out[:, first:last]
            offsets = bias if bias is None or bias.numel() == 1 else bias[first:last]
            if cast:
                columns.copy_(functional.linear(part, matrix, offsets))
            elif offsets is None:
                torch.mm(part, matrix.t(), out=columns)
            else:
                torch.addmm(offsets, part, matrix.t(), out=columns)
    return result.view(*inputs.shape[:-1], rows)


def _perturbed(weight: PerturbedWeight, pieces: Sequence[tuple[int, int, Tensor]]) -> list[Tensor]:
    """Perturbs successive pieces of a matrix at every query, in scratch memory: shape (rows, d) each."""
    theta, probe = weight.theta, weight.probe
    first, numel, count = pieces[0][0], pieces[-1][1] - pieces[0][0], len(probe.queries)
    scratch = probe.scratch.setdefault(theta.dtype, Scratch(theta.dtype)).take(count * numel, theta.device)
    for start, stop, origin in pieces:
        for index, query in enumerate(probe.queries):  # both queries of a piece at once: a law may remember its draw
            place = index * numel + start - first
            probe.directions.perturb(origin, scratch[place : place + stop - start], weight.weight, start, stop, query)
    return list(scratch.view(count, -1, theta.shape[1]).unbind())


def embedding(ids: Tensor, weight: PerturbedWeight) -> Tensor:
    """Looks rows up at the queries of the weight's probe; the other rows are not perturbed.

    Args:
        ids: Which rows, int, the copies of the batch along the first dimension.
        weight: Shape (rows, d), in pieces of whole rows.

    Returns:
        Shape (*ids.shape, d).

    Raises:
        NotJointError: If the first dimension is not the batch's.
    """
    queries, directions = weight.probe.queries, weight.probe.directions
    parts = copies(ids, weight.probe)
    found = [
        directions.perturbed_rows(weight.theta, weight.weight, part, query)
        for part, query in zip(parts, queries, strict=True)
    ]
    return torch.cat(found) if len(found) > 1 else found[0]


def scale(activations: Tensor, vector: PerturbedWeight) -> Tensor:
    """Multiplies activations by a vector at its queries: what the norms of many models do.

    Args:
        activations: Shape (batch, ..., d), the copies of the batch along the first dimension.
        vector: Shape (d,).

    Returns:
        Shape (batch, ..., d).

    Raises:
        NotJointError: If the first dimension is not the batch's.
    """
    queries = vector.probe.queries
    if len(queries) == 1:
        return activations * vector.at(queries[0])
    shape = copies(activations, vector.probe)[0].shape
    values = torch.stack([vector.at(query) for query in queries]).view(len(queries), *[1] * (len(shape) - 1), -1)
    return (activations.reshape(len(queries), *shape) * values).flatten(0, 1)
