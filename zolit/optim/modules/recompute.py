"""Computes the layers of a model again in a backward pass, so that their activations are not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from zolit.errors import require
from zolit.optim.modules.layers import find_layers


@contextmanager
def recomputed_layers(model: nn.Module) -> Iterator[None]:
    """Keeps the input of each layer alone, for the time of a forward and its backward pass.

    The backward pass computes each layer again from its input (Chen et al., arXiv 1604.06174). The gradients are the
    same to the bit, if a layer computes the same again. It does, because the model is in evaluation mode. transformers
    recomputes layers (``gradient_checkpointing_enable``) in training mode only, in which dropout would act.

    Layers are the members of the largest ``nn.ModuleList`` of the model (``find_layers``), whatever the model is.

    Args:
        model: The model. Both passes must run within the context.

    Raises:
        UserError: If the model has no such list.
    """
    _, layers = find_layers(model)
    require(
        bool(layers), "recompute: the model has no nn.ModuleList of layers to compute again; set `recompute` to false"
    )
    layers = list(dict.fromkeys(layers))  # a model may call one layer several times
    before = [vars(layer).get("forward") for layer in layers]
    # The cache of autocast would keep a copy of every weight in 16 bits until the end of the step.
    caches = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        for layer in layers:
            layer.__dict__["forward"] = _checkpointed(layer.forward)
        yield
    finally:
        torch.set_autocast_cache_enabled(caches)
        for layer, forward in zip(layers, before, strict=True):
            del layer.__dict__["forward"]
            if forward is not None:
                layer.__dict__["forward"] = forward


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(_Twice(forward, args, kwargs), use_reentrant=False, preserve_rng_state=False)

    return call


class _Twice:
    """A call of a layer, which the backward pass makes a second time.

    A layer adds its keys and values to a cache (of prefix tuning). The second call must not find them there, so it gets
    a copy of the cache from before the first call.
    """

    def __init__(self, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._forward = forward
        self._first: tuple[Sequence[Any], Mapping[str, Any]] | None = args, kwargs
        self._second = [_copied(value) for value in args], {name: _copied(value) for name, value in kwargs.items()}

    def __call__(self) -> Any:
        (args, kwargs), self._first = self._first or self._second, None
        return self._forward(*args, **kwargs)


def _copied(value: Any) -> Any:
    """Returns a copy of a cache that shares its tensors, which layers replace and do not write; else the value."""
    if not (hasattr(value, "get_seq_length") and hasattr(value, "layers")):
        return value
    cache = copy(value)
    cache.layers = [copy(layer) for layer in value.layers]
    return cache
