"""What each example's activations meet: θ and, on top, the product with a direction of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zolit.closure import Closure
from zolit.directions import Directions
from zolit.errors import UserError, require
from zolit.perturbation.factors import Factors
from zolit.probing.views import WeightView


class ExampleProbe:
    """What all views of one step have in common: which examples are being computed, and c.

    Args:
        directions: One for each example.
    """

    def __init__(self, directions: Directions) -> None:
        self.directions = directions
        self._named = directions.count > 0
        self._coefficient: float | Tensor = 0.0
        self._first = self._stop = 0
        self._places: Tensor | None = None

    def forward(self, closure: Closure, coefficient: float | Tensor) -> Tensor:
        """Returns the loss of each example at θ + c·uᵢ, shape (batch,), float32 or wider.

        Args:
            closure: Returns them.
            coefficient: c, for all examples or of shape (batch,).
        """
        self._first = self._stop = 0
        self._coefficient = coefficient
        torch.clear_autocast_cache()
        losses = closure()
        require(
            losses.ndim == 1 and len(losses) == self._stop,
            f"the closure must return the loss of each example, shape ({self._stop},), and call the model that the "
            f"optimizer was given: it returned shape {tuple(losses.shape)}",
        )
        self._require_names(len(losses) == self.directions.count)
        return losses if losses.dtype == torch.float64 else losses.float()

    def _require_names(self, enough: bool) -> None:
        count = self.directions.count
        require(enough, f"step: {count} examples are named (examples=...), and the batch has another number of them")

    def enter(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Hook before the model's forward: its first tensor tells how many examples come now."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim]
        require(bool(tensors), "probing: the model was called without a tensor, so examples cannot be counted")
        self._first, self._stop = self._stop, self._stop + len(tensors[0])
        self._tokens = tensors[0].shape[1] if tensors[0].ndim > 1 else 1
        if self._stop > self.directions.count:
            self._require_names(not self._named)
            self.directions.rename(range(self._stop))
        mask = kwargs.get("attention_mask")
        self._places = None
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self._places = (mask.cumsum(1) - 1).masked_fill_(mask == 0, -1)

    @property
    def examples(self) -> int:
        """How many examples are being computed."""
        return self._stop - self._first

    def factors(self, view: ExampleView, inputs: Tensor | None = None) -> Factors:
        """Returns what the present examples' directions of a weight are made of, c among the scales.

        Args:
            view: The weight.
            inputs: What a matrix is multiplied with, shape (examples, tokens, d): activation-guided laws go by it.
        """
        directions, first, stop = self.directions, self._first, self._stop
        directions.guide(view.weight, first, stop, inputs, self._places)
        factors = directions.factors(view.weight, first, stop)
        assert factors is not None, "a law of low rank goes with this prober"
        c = self._coefficient if isinstance(self._coefficient, float) else self._coefficient[first:stop, None]
        return factors._replace(scales=factors.scales * c)

    def vectors(self, view: ExampleView) -> Tensor:
        """Returns θ + c·uᵢ of a vector, shape (examples, n), float32 or wider."""
        factors = self.factors(view)
        theta = view.theta if view.theta.dtype == torch.float64 else view.theta.float()
        return theta + (factors.outputs * factors.scales.unsqueeze(2))[:, 0]

    def rows(self, tensor: Tensor, view: ExampleView, what: str) -> Tensor:
        """Returns activations or ids by examples, shape (examples, rows of each, d) or (examples, tokens).

        Raises:
            UserError: If the examples do not lie along the first dimension, alone or flattened with their tokens.
        """
        lengths = (self.examples, self.examples * self._tokens)  # the latter where all examples' tokens are in a row
        if tensor.ndim < 2 - (what == "embedding") or len(tensor) not in lengths:
            refuse(view, f"meets activations of shape {tuple(tensor.shape)} in {what}, not {self.examples} examples")
        return tensor.reshape(self.examples, -1, *([] if what == "embedding" else tensor.shape[-1:]))


class ExampleView(WeightView):
    """Stands where a module looks for a weight; each example's activations meet θ + c·uᵢ.

    Known are ``linear``, ``embedding``, ``layer_norm``, ``rms_norm`` and the product with a vector of scales; whatever
    else a model computes with a weight is refused.
    """

    probe: ExampleProbe

    @classmethod
    def compute(cls, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Computes with θ + c·uᵢ, example by example."""
        if func is functional.linear:
            return linear(*args, **kwargs)
        if func is functional.embedding and kwargs.get("max_norm") is None:
            return embedding(args[0], args[1])
        if func is functional.layer_norm:
            return _layer_norm(*args, **kwargs)
        if func is functional.rms_norm:
            return _rms_norm(*args, **kwargs)
        if func is Tensor.mul and all(isinstance(factor, Tensor) for factor in args):
            activations, vector = args if isinstance(args[1], cls) else args[::-1]
            if vector.ndim == 1 and not isinstance(activations, cls):
                return _scale(activations, vector)
        views = [value for value in (*args, *kwargs.values()) if isinstance(value, cls)]
        refuse(views[0] if views else None, f"is used in {getattr(func, '__name__', func)}")
        return None


def refuse(view: ExampleView | None, why: str) -> None:
    """Says that a weight cannot be perturbed for each example.

    Raises:
        UserError: Always.
    """
    name = view.weight.name if view is not None else "a weight"
    msg = (
        f"probing: {name} {why}; a direction for each example needs activations with the examples along the first "
        "dimension, and linear, embedding or norm layers: freeze it (requires_grad=False), or take another method"
    )
    raise UserError(msg)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x Wᵀ + b + c f (x·bᵢ) aᵢ.

    Args:
        inputs: x, shape (examples, ..., d).
        weight: W, shape (n, d).
        bias: Shape (n,).

    Returns:
        Shape (examples, ..., n).
    """
    view = weight if isinstance(weight, ExampleView) else bias
    assert isinstance(view, ExampleView)
    probe, flat = view.probe, view.probe.rows(inputs, view, "linear")
    # Of two dimensions: with three, torch would repeat a matrix that requires no gradient for every example.
    rows = functional.linear(flat.flatten(0, 1), _theta(weight), None if isinstance(bias, ExampleView) else bias)
    out = rows.view(probe.examples, -1, rows.shape[-1])
    if isinstance(weight, ExampleView):
        factors = probe.factors(weight, flat)
        shares = flat.to(out.dtype) @ factors.inputs.mT.to(out.dtype)
        out.baddbmm_(shares.mul_(factors.scales.unsqueeze(1)), factors.outputs.to(out.dtype))
    if isinstance(bias, ExampleView):
        out.add_(probe.vectors(bias).unsqueeze(1))
    return out.view(*inputs.shape[:-1], -1)


def embedding(ids: Tensor, weight: ExampleView) -> Tensor:
    """Looks rows of θ + c·uᵢ up.

    Args:
        ids: Which rows, int, shape (examples, ...), or (1, ...) for all examples.
        weight: Shape (rows, d).

    Returns:
        Shape (examples, ..., d).
    """
    probe = weight.probe
    if len(ids) == 1:
        ids = ids.expand(probe.examples, *ids.shape[1:])
    places = probe.rows(ids, weight, "embedding")
    factors = probe.factors(weight)
    found = functional.embedding(ids, weight.theta)
    shares = factors.outputs.gather(2, places.unsqueeze(1).expand(-1, factors.outputs.shape[1], -1)).mT
    out = found.view(probe.examples, -1, found.shape[-1])
    out.baddbmm_((shares * factors.scales.unsqueeze(1)).to(out.dtype), factors.inputs.to(out.dtype))
    return found


def _scale(activations: Tensor, vector: ExampleView) -> Tensor:
    """Multiplies activations, shape (examples, ..., n), by a vector, shape (n,)."""
    probe, dtype = vector.probe, torch.result_type(activations, vector.theta)
    flat = probe.rows(activations, vector, "a product")
    return (flat * probe.vectors(vector).unsqueeze(1)).to(dtype).view(activations.shape)


def _layer_norm(
    inputs: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    return _affine(functional.layer_norm(inputs, shape, None, None, eps), weight, bias)


def _rms_norm(inputs: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    return _affine(functional.rms_norm(inputs, shape, None, eps), weight, None)


def _affine(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Computes w ⊙ x + b for what a norm gives."""
    for view in (weight, bias):
        if isinstance(view, ExampleView) and view.ndim != 1:
            refuse(view, "is a norm's over several dimensions")
    scaled = normed
    if weight is not None:
        scaled = _scale(normed, weight) if isinstance(weight, ExampleView) else normed * weight
    if not isinstance(bias, ExampleView):
        return scaled if bias is None else scaled + bias
    flat = bias.probe.rows(scaled, bias, "layer_norm")
    return (flat + bias.probe.vectors(bias).unsqueeze(1)).to(scaled.dtype).view(scaled.shape)


def _theta(weight: Tensor) -> Tensor:
    return weight.theta if isinstance(weight, ExampleView) else weight
