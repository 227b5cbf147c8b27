"""Products with θ plus one low-rank direction for each example.

``PRODUCTS`` maps functions that modules call to the functions below that replace them. To support another kind of
layer, add an entry. A replacement is called whenever the original function is called with a view of a weight, and gets
the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from zolit.optim.probing.per_example.probe import refuse
from zolit.optim.probing.views import WeightView


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x Wᵀ + b + c f (x·bᵢ) aᵢ. Replaces ``torch.nn.functional.linear``.

    Args:
        input: x, shape (examples, ..., d).
        weight: W, shape (n, d).
        bias: Shape (n,).

    Returns:
        Shape (examples, ..., n).
    """
    view = weight if isinstance(weight, WeightView) else bias
    assert isinstance(view, WeightView)
    probe, flat = view.probe, view.probe.by_example(input, view, "linear")
    # In two dimensions: with three, torch would copy a matrix without gradient once for each example.
    rows = functional.linear(flat.flatten(0, 1), _theta(weight), None if isinstance(bias, WeightView) else bias)
    out = rows.view(probe.examples, -1, rows.shape[-1])
    if isinstance(weight, WeightView):
        factors = probe.factors(weight, input)
        projected = flat.to(out.dtype) @ factors.inputs.mT.to(out.dtype)
        out.baddbmm_(projected.mul_(factors.scales.unsqueeze(1)), factors.outputs.to(out.dtype))
    if isinstance(bias, WeightView):
        out.add_(probe.vectors(bias).unsqueeze(1))
    return out.view(*input.shape[:-1], -1)


def embedding(
    input: Tensor,
    weight: WeightView,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *_: Any,
    **__: Any,
) -> Tensor:
    """Looks up rows of θ + c·uᵢ. Replaces ``torch.nn.functional.embedding``.

    Args:
        input: Indices of rows, int, shape (examples, ...), or (1, ...) for all examples.
        weight: Shape (rows, d).
        padding_idx: Ignored, because it affects gradients only.
        max_norm: Must be None, because an embedding with a maximum norm writes to its weight.

    Returns:
        Shape (examples, ..., d).
    """
    if max_norm is not None:
        refuse(weight, "is looked up with max_norm")
    probe, ids = weight.probe, input
    probe.begin_use(weight, ids)
    if len(ids) == 1:
        ids = ids.expand(probe.examples, *ids.shape[1:])
    indices = probe.by_example(ids, weight, "embedding")
    factors = probe.factors(weight)
    found = functional.embedding(ids, weight.theta)
    outputs = factors.outputs.gather(2, indices.unsqueeze(1).expand(-1, factors.outputs.shape[1], -1)).mT
    out = found.view(probe.examples, -1, found.shape[-1])
    out.baddbmm_((outputs * factors.scales.unsqueeze(1)).to(out.dtype), factors.inputs.to(out.dtype))
    return found


def multiply(input: Tensor, other: Tensor) -> Tensor:
    """Multiplies activations by a vector of scales, in either order. Replaces ``Tensor.mul``, which many norms use.

    Args:
        input: Activations, shape (examples, ..., n), or the vector, shape (n,).
        other: The other of the two.

    Returns:
        Shape (examples, ..., n).
    """
    activations, vector = (input, other) if isinstance(other, WeightView) else (other, input)
    assert isinstance(vector, WeightView)
    if vector.ndim != 1 or not isinstance(activations, Tensor) or isinstance(activations, WeightView):
        refuse(vector, "is used in mul")
    return _scale(activations, vector)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalizes, and applies weight and bias example by example. Replaces ``torch.nn.functional.layer_norm``."""
    return _affine(functional.layer_norm(input, normalized_shape, None, None, eps), weight, bias)


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Normalizes, and applies the weight example by example. Replaces ``torch.nn.functional.rms_norm``."""
    return _affine(functional.rms_norm(input, normalized_shape, None, eps), weight, None)


PRODUCTS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.linear: linear,
    functional.embedding: embedding,
    functional.layer_norm: layer_norm,
    functional.rms_norm: rms_norm,
    Tensor.mul: multiply,
}


def _scale(activations: Tensor, vector: WeightView) -> Tensor:
    """Multiplies activations, shape (examples, ..., n), by a vector, shape (n,)."""
    probe, dtype = vector.probe, torch.result_type(activations, vector.theta)
    flat = probe.by_example(activations, vector, "a product")
    scaled: Tensor = (flat * probe.vectors(vector).unsqueeze(1)).to(dtype).view(activations.shape)
    return scaled


def _affine(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Computes w ⊙ x + b for the output x of a norm."""
    for view in (weight, bias):
        if isinstance(view, WeightView) and view.ndim != 1:
            refuse(view, "belongs to a norm over several dimensions")
    scaled = normed
    if weight is not None:
        scaled = _scale(normed, weight) if isinstance(weight, WeightView) else normed * weight
    if not isinstance(bias, WeightView):
        return scaled if bias is None else scaled + bias
    flat = bias.probe.by_example(scaled, bias, "layer_norm")
    shifted: Tensor = (flat + bias.probe.vectors(bias).unsqueeze(1)).to(scaled.dtype).view(scaled.shape)
    return shifted


def _theta(weight: Tensor) -> Tensor:
    return weight.theta if isinstance(weight, WeightView) else weight
