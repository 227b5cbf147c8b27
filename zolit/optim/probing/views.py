"""Tensors that replace a weight in its module, while the weight itself is not written."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn

from zolit.optim.blocks import Weight

# Attributes and methods that describe a weight. Views return what θ returns.
_DESCRIPTIONS = {"device", "dtype", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_sparse", "itemsize", "layout"}


_DESCRIPTIONS |= {"nbytes", "ndim", "requires_grad", "shape"}


_DESCRIBE = {Tensor.dim, Tensor.element_size, Tensor.is_contiguous, Tensor.is_floating_point, Tensor.numel, Tensor.size}


_DESCRIBE |= {Tensor.stride, Tensor.__len__}


Sites = Mapping[Weight, Sequence[tuple[nn.Module, str]]]
"""The modules and attribute names under which the model holds each weight."""


class WeightView(Tensor):
    """A tensor that has the description of θ, such as its shape, but computes with other values.

    Subclasses define these values.

    Attributes:
        weight: The weight.
        theta: θ, the values of the weight.
        probe: The state that all views of one step share.
    """

    _is_param = True  # makes isinstance(view, nn.Parameter) true
    weight: Weight
    theta: Tensor
    probe: Any

    @classmethod
    def of(cls, weight: Weight, probe: Any) -> Self:
        """Makes the view of a weight. Called for each sampled weight, once for each call of ``Prober.losses``."""
        theta = weight.parameter.data
        # Code that reads the memory directly gets NaN and not θ. The first forward, which is checked, detects this.
        view = _nan(theta.dtype, theta.device).expand(theta.shape).as_subclass(cls)
        view.weight, view.theta, view.probe = weight, theta, probe
        return view

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Returns a description of θ, or calls ``compute``. Called by torch for each function of a view."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _DESCRIBE or getattr(getattr(func, "__self__", None), "__name__", "") in _DESCRIPTIONS:
                return func(args[0].theta, *args[1:], **kwargs)
            if func is Tensor.__deepcopy__:
                msg = (
                    "a model cannot be copied during a probe, because its weights are perturbed; copy it between two "
                    "steps"
                )
                raise RuntimeError(msg)
            return cls.compute(func, args, kwargs)

    @classmethod
    @abstractmethod
    def compute(cls, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Computes a function whose arguments include views. Called for all functions except those that describe θ."""


def find_sites(model: nn.Module, weights: Sequence[Weight]) -> Sites:
    """Finds the attributes in which modules hold weights. Called once, in ``Prober.bind``."""
    wanted = {id(weight.parameter): weight for weight in weights}
    sites: dict[Weight, list[tuple[nn.Module, str]]] = {weight: [] for weight in weights}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in wanted:
                sites[wanted[id(parameter)]].append((module, name))
    return sites


@contextmanager
def installed(views: Iterable[WeightView], sites: Sites) -> Iterator[None]:
    """Replaces weights by views in the attributes of modules, for the time of the context. Used for each probe."""
    # Python finds an attribute in the __dict__ of a module before the entry in _parameters, which does not change.
    entries = [(module, name, view) for view in views for module, name in sites[view.weight]]
    try:
        for module, name, view in entries:
            module.__dict__[name] = view
        yield
    finally:
        for module, name, _ in entries:
            module.__dict__.pop(name, None)


@cache
def _nan(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(math.nan, dtype=dtype, device=device)


@contextmanager
def poisoned(weights: Sequence[Weight]) -> Iterator[None]:
    """Makes ``parameter.data`` read as NaN for the time of the context, without writing to θ.

    Code that bypasses the views then produces a loss of NaN. Used in the first forward that perturbs a weight.
    """
    thetas = [weight.parameter.data for weight in weights]
    try:
        for weight, theta in zip(weights, thetas, strict=True):
            weight.parameter.data = _nan(theta.dtype, theta.device).expand(theta.shape)
        yield
    finally:
        for weight, theta in zip(weights, thetas, strict=True):
            weight.parameter.data = theta
