"""What stands where a module looks for a weight while the weight itself is left alone."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn

from zolit.blocks import Weight
from zolit.signals import deferred_signals

# What a weight is asked about itself; the answers are those of θ.
_DESCRIPTIONS = {"device", "dtype", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_sparse", "itemsize", "layout"}
_DESCRIPTIONS |= {"nbytes", "ndim", "requires_grad", "shape"}
_DESCRIBE = {Tensor.dim, Tensor.element_size, Tensor.is_contiguous, Tensor.is_floating_point, Tensor.numel, Tensor.size}
_DESCRIBE |= {Tensor.stride, Tensor.__len__}

Places = Mapping[Weight, Sequence[tuple[nn.Module, str]]]
"""Where each weight is an attribute: the module and the attribute's name."""


class WeightView(Tensor):
    """Answers for θ when asked what it is, and for something else when computed with.

    Attributes:
        weight: The weight.
        theta: Its values, θ.
        probe: What all views of one step have in common.
    """

    _is_param = True  # what makes isinstance(view, nn.Parameter) true
    weight: Weight
    theta: Tensor
    probe: Any

    @classmethod
    def of(cls, weight: Weight, probe: Any) -> Self:
        """Makes the view of a weight."""
        theta = weight.parameter.data
        # NaN, not θ, for whatever reads memory without asking: the forward that is checked will show it.
        view = _nan(theta.dtype, theta.device).expand(theta.shape).as_subclass(cls)
        view.weight, view.theta, view.probe = weight, theta, probe
        return view

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Describes θ, or computes."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _DESCRIBE or getattr(getattr(func, "__self__", None), "__name__", "") in _DESCRIPTIONS:
                return func(args[0].theta, *args[1:], **kwargs)
            if func is Tensor.__deepcopy__:
                msg = "a model cannot be copied amid a probe, its weights are perturbed; copy it between two steps"
                raise RuntimeError(msg)
            return cls.compute(func, args, kwargs)

    @classmethod
    @abstractmethod
    def compute(cls, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Computes a function of views and other things."""


def find_places(model: nn.Module, weights: Sequence[Weight]) -> Places:
    """Finds the attributes under which modules look for weights."""
    wanted = {id(weight.parameter): weight for weight in weights}
    places: dict[Weight, list[tuple[nn.Module, str]]] = {weight: [] for weight in weights}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in wanted:
                places[wanted[id(parameter)]].append((module, name))
    return places


@contextmanager
def placed(views: Iterable[WeightView], places: Places) -> Iterator[None]:
    """Puts views where modules look for their weights."""
    # An attribute in a module's __dict__ is found before its entry in _parameters, which stays as it is.
    entries = [(module, name, view) for view in views for module, name in places[view.weight]]
    try:
        for module, name, view in entries:
            module.__dict__[name] = view
        yield
    finally:
        with deferred_signals(interrupts=True):
            for module, name, _ in entries:
                module.__dict__.pop(name, None)


@cache
def _nan(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(math.nan, dtype=dtype, device=device)


@contextmanager
def hidden(weights: Sequence[Weight]) -> Iterator[None]:
    """Has parameters read as NaN, without writing to them."""
    thetas = [weight.parameter.data for weight in weights]
    try:
        for weight, theta in zip(weights, thetas, strict=True):
            weight.parameter.data = _nan(theta.dtype, theta.device).expand(theta.shape)
        yield
    finally:
        with deferred_signals(interrupts=True):
            for weight, theta in zip(weights, thetas, strict=True):
                weight.parameter.data = theta
