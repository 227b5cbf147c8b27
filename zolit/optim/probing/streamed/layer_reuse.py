"""Computes the layers before all perturbed weights once a step, and reuses their output in all probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zolit.optim.blocks import Weight
from zolit.optim.modules.layers import find_layers
from zolit.optim.probing.views import Sites


class _Call(NamedTuple):
    """The input of the first layer and the output of the last reused layer, in one call of the model."""

    inputs: Tensor
    output: Any
    versions: tuple[int, ...]


class LayerReuse:
    """Replaces the forwards of the first layers by the outputs that they gave in the first probe of a step.

    Layers are the members of the largest ``nn.ModuleList`` of the model, as long as each layer takes the output of the
    layer before it. The input of the first layer is compared in each forward. If the input is another one, or if the
    model continues with cached keys, all layers are computed. On a GPU the host waits for this comparison.

    A model may use the outputs of layers in other places too. So the first reuse of a number of layers is verified: one
    probe is computed with and without reuse, and the losses are compared.

    Args:
        model: The model.
        sites: The modules that hold its trainable weights.
    """

    def __init__(self, model: nn.Module, sites: Sites) -> None:
        _, layers = find_layers(model)
        self._layers = layers if 1 < len(layers) == len(set(layers)) else []
        self._proven: dict[int, bool] = {}
        self._sites = sites
        self._first_use: dict[Weight, int] = dict.fromkeys(sites, 0)
        self._calls: list[_Call] = []
        self._next = 0
        self._replayed: Any = None
        self._inputs: Any = None
        self._uses_cache = False

    @contextmanager
    def trace(self) -> Iterator[None]:
        """Finds how many layers have ended when each weight is first used. Used once, around the first forward."""
        done = chained = 0
        needed: dict[nn.Module, int] = {}
        before: Any = None

        def enter(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            nonlocal chained
            follows = done == 0 or (inputs and any(inputs[0] is output for output in _tensors(before)))
            if follows and done == chained and inputs and layer is self._layers[done % len(self._layers)]:
                chained += 1

        def finish(_: nn.Module, __: Any, output: Any) -> None:
            nonlocal done, before
            done, before = done + 1, output

        def need(module: nn.Module, _: Any) -> None:
            needed.setdefault(module, done)

        inside: dict[nn.Module, int] = {}
        for index, layer in enumerate(self._layers):
            for module in layer.modules():
                inside.setdefault(module, index)
        with ExitStack() as hooks:
            for layer in self._layers:
                hooks.callback(layer.register_forward_pre_hook(enter).remove)
                hooks.callback(layer.register_forward_hook(finish).remove)
            for module in {module for sites in self._sites.values() for module, _ in sites}:
                hooks.callback(module.register_forward_pre_hook(need).remove)
            yield
        for weight, sites in self._sites.items():
            first = min((inside.get(module, needed.get(module, 0)) for module, _ in sites), default=0)
            self._first_use[weight] = min(first, chained)

    def length(self, weights: Sequence[Weight]) -> int:
        """Returns how many layers end before any of these weights is used. Called once for each call of the prober.

        The result is 0 if only one layer ends before, or if the comparison has shown that reuse is wrong.
        """
        length = min((self._first_use[weight] for weight in weights), default=0)
        return length if length > 1 and self._proven.get(length, True) else 0

    def is_proven(self, length: int) -> bool:
        """Returns whether reuse of ``length`` layers has given the same loss as a full forward. Called after probes."""
        return self._proven.get(length, False)

    def record(self, length: int, sound: bool) -> None:
        """Records the result of the comparison. If the losses differ, ``length`` layers are not reused again."""
        self._proven[length] = sound

    @contextmanager
    def reuse(self, length: int) -> Iterator[Callable[[], None]]:
        """Computes the first layers once, for the time of the context. Used for each call of the prober.

        Args:
            length: Number of layers to reuse.

        Yields:
            A function to call before each forward of the closure.
        """
        self._calls.clear()
        self._uses_cache = False
        layers = self._layers[:length]
        before = [vars(layer).get("forward") for layer in layers]
        for index, layer in enumerate(layers):
            layer.__dict__["forward"] = self._answering(index, index == length - 1, layer.forward)
        try:
            yield self._restart
        finally:
            for layer, forward in zip(layers, before, strict=True):
                if forward is None:
                    del layer.__dict__["forward"]
                else:
                    layer.__dict__["forward"] = forward
            self._calls.clear()
            self._replayed = self._inputs = None

    def _restart(self) -> None:
        self._next = 0

    def _answering(self, index: int, last: bool, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that runs a layer in the first probe, and returns the same output in later probes."""

        def answer(*args: Any, **kwargs: Any) -> Any:
            if index == 0:
                caches = (option for option in kwargs.values() if hasattr(option, "get_seq_length"))
                self._uses_cache = self._uses_cache or any(cache.get_seq_length() > 0 for cache in caches)
                self._begin_call(args[0] if args and isinstance(args[0], Tensor) else None)
            if self._replayed is not None:
                output = self._replayed
            else:
                output = forward(*args, **kwargs)
                if last and self._inputs is not None and self._next == len(self._calls) and _is_plain(output):
                    self._calls.append(_Call(self._inputs, output, _versions(output)))
            if last:
                self._next += 1
            return output

        return answer

    def _begin_call(self, hidden: Tensor | None) -> None:
        self._replayed, self._inputs = None, hidden
        # A call that continues with cached keys needs the keys of every layer, so every layer must run.
        if hidden is not None and not self._uses_cache and self._next < len(self._calls):
            known = self._calls[self._next]
            unchanged = known.versions == _versions(known.output)
            if unchanged and known.inputs.shape == hidden.shape and torch.equal(known.inputs, hidden):
                self._replayed = known.output


def _tensors(output: Any) -> list[Tensor]:
    """Returns the tensors in the output of a layer: a single tensor, or those in a tuple or list."""
    return [item for item in (output if isinstance(output, tuple | list) else [output]) if isinstance(item, Tensor)]


def _is_plain(output: Any) -> bool:
    """Returns whether an output can be kept: tensors only, of which torch counts the writes."""
    items = output if isinstance(output, tuple | list) else (output,)
    return all(isinstance(item, Tensor) and not item.is_inference() for item in items)


def _versions(output: Any) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in _tensors(output))
