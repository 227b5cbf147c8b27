"""Computes θ + Σ cᵢuᵢ of pieces and rows, in float32 or wider, and rounds the result once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, add
from torch.nn import functional

from zolit.optim.blocks import Weight
from zolit.optim.buffers import Scratch
from zolit.optim.perturbation.directions import Directions


def perturb(
    directions: Directions,
    origin: Tensor,
    out: Tensor,
    weight: Weight,
    start: int,
    stop: int,
    coefficients: Sequence[float],
    scratch: Scratch,
) -> None:
    """Writes θ + Σᵢ cᵢuᵢ of a piece of a sampled weight. Called by probers for each piece and query.

    Args:
        directions: u.
        origin: θ of the piece, shape (stop - start,).
        out: The tensor to write, of the same shape and type; may be ``origin`` itself.
        weight: The weight.
        start: Index of the first element.
        stop: Index after the last element.
        coefficients: c, shape (k,).
        scratch: float32 memory for sums, for weights of 16 bits.
    """
    narrow = out.dtype.itemsize == 2
    moving = [direction for direction, coefficient in enumerate(coefficients) if coefficient]
    if len(moving) == 1:
        u, factor = directions.draw(moving[0], weight, start, stop, out.dtype)
        if u.dtype == out.dtype or not narrow:
            add(origin, u, alpha=coefficients[moving[0]] * factor, out=out)
        else:
            total = scratch.get(stop - start, out.device).copy_(origin)
            out.copy_(total.add_(u, alpha=coefficients[moving[0]] * factor))
        return
    total = scratch.get(stop - start, out.device).copy_(origin) if narrow else out.copy_(origin)
    for direction in moving:
        u, factor = directions.draw(direction, weight, start, stop)
        total.add_(u, alpha=coefficients[direction] * factor)
    if narrow:
        out.copy_(total)


def perturbed_rows(
    directions: Directions, origin: Tensor, weight: Weight, ids: Tensor, coefficients: Sequence[float]
) -> Tensor:
    """Computes rows of θ + Σᵢ cᵢuᵢ of a sampled matrix, and no other rows. Called for each lookup in an embedding.

    Args:
        directions: u.
        origin: θ, shape (rows, d).
        weight: The matrix; its rows are not longer than a chunk.
        ids: Indices of the rows, int, any shape.
        coefficients: c, shape (k,).

    Returns:
        Shape (*ids.shape, d), of the type of the weight.
    """
    wanted = ids.reshape(-1)
    rows = functional.embedding(wanted, origin)
    total = rows.float() if rows.dtype.itemsize == 2 else rows
    moving = [(direction, coefficient) for direction, coefficient in enumerate(coefficients) if coefficient]
    if ids.device.type == "cpu" or not _add_rows(directions, total, weight, wanted, moving):
        _add_pieces(directions, total, weight, wanted, moving)
    return total.to(origin.dtype).view(*ids.shape, origin.shape[1])


def _add_rows(
    directions: Directions, total: Tensor, weight: Weight, wanted: Tensor, moving: Sequence[tuple[int, float]]
) -> bool:
    """Adds rows that the law draws singly. If the law can draw whole pieces only, adds nothing and returns False.

    A CPU draws whole pieces instead, because they stay in its cache.
    """
    found = [(directions.draw_rows(direction, weight, wanted), coefficient) for direction, coefficient in moving]
    known = [(u, coefficient) for u, coefficient in found if u is not None]
    if len(known) < len(found):
        return False
    for u, coefficient in known:
        total.add_(u, alpha=coefficient)
    return True


def _add_pieces(
    directions: Directions, total: Tensor, weight: Weight, wanted: Tensor, moving: Sequence[tuple[int, float]]
) -> None:
    """Adds rows by drawing every piece of the matrix that contains one of them."""
    width = total.shape[1]
    for start, stop in directions.chunks(weight):
        first, last = start // width, stop // width
        inside = (wanted >= first) & (wanted < last)
        # A CPU visits the rows of this piece only. On a GPU, the host would have to wait for the list of these rows.
        at = inside.nonzero().view(-1) if wanted.device.type == "cpu" else None
        if at is not None and not len(at):
            continue
        for direction, coefficient in moving:
            v, factor = directions.draw(direction, weight, start, stop)
            u = v.view(-1, width)
            if at is not None:
                total.index_add_(0, at, u[wanted[at] - first].to(total.dtype), alpha=coefficient * factor)
            else:
                u = u[(wanted - first).clamp(0, last - first - 1)] * inside.unsqueeze(1)
                total.add_(u, alpha=coefficient * factor)
