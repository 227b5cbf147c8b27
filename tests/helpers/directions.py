"""The directions of a step, made outside of the optimizer, and weights that are moved along them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from zolit import ZerothOrder
from zolit.optim.perturbation.directions import Directions
from zolit.optim.randomness import Step


def directions_of(optimizer: ZerothOrder, index: int, ids: Sequence[int] = (), begin: bool = True) -> Directions:
    """Returns the directions of an optimizer's step.

    Args:
        optimizer: Its selection samples the blocks, and its perturbation draws the directions.
        index: Index of the step.
        ids: An id for each direction.
        begin: Whether the perturbation begins the step; otherwise it keeps its state of the step before.
    """
    step = Step(optimizer.seed, index)
    sample = optimizer.selection.select(step)
    if begin:
        optimizer.perturbation.begin_step(step)
    return Directions(sample, optimizer.perturbation, step, ids)


@contextmanager
def moved_along(directions: Directions, index: int, coefficient: float) -> Iterator[None]:
    """Writes θ + c·uᵢ into the weights, and restores θ to the bit."""
    before = [weight.flat.clone() for weight in directions.weights]
    for weight in directions.weights:
        for start, stop in directions.chunks(weight):
            u, factor = directions.draw(index, weight, start, stop)
            weight.flat[start:stop].add_(u, alpha=coefficient * factor)
    yield
    for weight, theta in zip(directions.weights, before, strict=True):
        weight.flat.copy_(theta)
