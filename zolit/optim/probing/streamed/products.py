"""Products with perturbed weights: with a matrix, with looked-up rows of a matrix, and with a vector of scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from zolit.optim.buffers import Scratch
from zolit.optim.probing import arithmetic
from zolit.optim.probing.streamed.probe import NotJointError
from zolit.optim.probing.views import WeightView

_WHOLE = 2
"""The largest number of chunks of a matrix that is perturbed as a whole."""


def linear(inputs: Tensor, weight: WeightView, biases: Sequence[Tensor | None]) -> Tensor:
    """Computes x Wᵀ + b at the queries of the probe. Called for each linear layer with a perturbed matrix.

    A matrix of up to two chunks is perturbed as a whole in a scratch buffer. A larger matrix, such as an output head,
    is perturbed and multiplied piece by piece, so that memory holds one perturbed piece only. The rows of a piece
    give the same number of columns of the result.

    Args:
        inputs: x, shape (..., d), with the copies of the batch along the first dimension.
        weight: W, shape (n, d), in pieces of whole rows.
        biases: b at each query, shape (n,), or None.

    Returns:
        Shape (..., n).

    Raises:
        NotJointError: If the first dimension is not that of the batch.
    """
    queries, theta = weight.probe.queries, weight.theta
    rows, width = theta.shape
    if len(queries) > 1 and inputs.ndim == 1:
        raise NotJointError
    parts = weight.probe.copies(inputs.reshape(-1, width))
    whole = theta.numel() <= _WHOLE * weight.probe.directions.chunk_size
    cast = torch.is_autocast_enabled(inputs.device.type)
    pieces = weight.probe.pieces(weight)
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


def _perturbed(weight: WeightView, pieces: Sequence[tuple[int, int, Tensor]]) -> list[Tensor]:
    """Perturbs successive pieces of a matrix in scratch memory; returns a matrix for each query, shape (rows, d)."""
    theta, probe = weight.theta, weight.probe
    first, numel, count = pieces[0][0], pieces[-1][1] - pieces[0][0], len(probe.queries)
    scratch = probe.scratch.setdefault(theta.dtype, Scratch(theta.dtype)).get(count * numel, theta.device)
    for start, stop, origin in pieces:
        # All queries of a piece follow each other, because a law may keep its last draw.
        for index, query in enumerate(probe.queries):
            at = index * numel + start - first
            probe.perturb(origin, scratch[at : at + stop - start], weight.weight, start, stop, query)
    return list(scratch.view(count, -1, theta.shape[1]).unbind())


def embedding(ids: Tensor, weight: WeightView) -> Tensor:
    """Looks up rows at the queries of the probe, and perturbs no other rows. Called for each perturbed embedding.

    Args:
        ids: Indices of the rows, int, with the copies of the batch along the first dimension.
        weight: The matrix, shape (rows, d), in pieces of whole rows.

    Returns:
        Shape (*ids.shape, d).

    Raises:
        NotJointError: If the first dimension is not that of the batch.
    """
    queries, directions = weight.probe.queries, weight.probe.directions
    parts = weight.probe.copies(ids)
    found = [
        arithmetic.perturbed_rows(directions, weight.theta, weight.weight, part, query)
        for part, query in zip(parts, queries, strict=True)
    ]
    return torch.cat(found) if len(found) > 1 else found[0]


def scale(activations: Tensor, vector: WeightView) -> Tensor:
    """Multiplies activations by a vector at the queries of the probe. Called for products in norms, for example.

    Args:
        activations: Shape (batch, ..., d), with the copies of the batch along the first dimension.
        vector: Shape (d,).

    Returns:
        Shape (batch, ..., d).

    Raises:
        NotJointError: If the first dimension is not that of the batch.
    """
    probe, queries = vector.probe, vector.probe.queries
    if len(queries) == 1:
        scaled: Tensor = activations * probe.at(vector, queries[0])
        return scaled
    shape = probe.copies(activations)[0].shape
    values = torch.stack([probe.at(vector, query) for query in queries]).view(len(queries), *[1] * (len(shape) - 1), -1)
    return (activations.reshape(len(queries), *shape) * values).flatten(0, 1)
