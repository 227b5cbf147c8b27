"""The layers below the lowest perturbed weight, computed once for all probes of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache

from zolit.blocks import Weight
from zolit.layers import stack_of
from zolit.probing.views import Places


class _Call(NamedTuple):
    """What came into the first layer in one call of the model, and what went out of the prefix."""

    inputs: Tensor
    output: Any
    versions: tuple[int, ...]


class Prefix:
    """Answers for the layers of a prefix with what they gave in the first probe.

    Layers are the members of the model's largest ``nn.ModuleList``, as far as each gets what the one before it gave,
    and nothing else comes in between. What comes into the first is compared each time, so that a model that is called
    on something else, or goes on with cached keys, computes all of them; on a GPU the host waits for this
    comparison, where there is a prefix. As a model may use layers' outputs elsewhere, a prefix is proven before it is
    relied on.
    """

    def __init__(self, model: nn.Module, places: Places) -> None:
        _, layers = stack_of(model)
        self._layers = layers if 1 < len(layers) == len(set(layers)) else []
        self._proven: dict[int, bool] = {}
        self._places = places
        self._first_use: dict[Weight, int] = dict.fromkeys(places, 0)
        self._calls: list[_Call] = []
        self._next = 0
        self._replayed: Any = None
        self._inputs: Any = None
        self._goes_on = False

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Finds out, from one forward, how many layers are done when each weight is first needed."""
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
            for module in {module for places in self._places.values() for module, _ in places}:
                hooks.callback(module.register_forward_pre_hook(need).remove)
            yield
        for weight, places in self._places.items():
            first = min((inside.get(module, needed.get(module, 0)) for module, _ in places), default=0)
            self._first_use[weight] = min(first, chained)

    def length(self, weights: Sequence[Weight]) -> int:
        """Returns how many layers come before all of these weights; one is not worth the trouble."""
        length = min((self._first_use[weight] for weight in weights), default=0)
        return length if length > 1 and self._proven.get(length, True) else 0

    def is_proven(self, length: int) -> bool:
        """Tells whether a probe has been answered with and without this prefix, and alike."""
        return self._proven.get(length, False)

    def prove(self, length: int, sound: bool) -> None:
        """Takes note of how that went; a prefix that changes a loss is not used again."""
        self._proven[length] = sound

    @contextmanager
    def shared(self, length: int) -> Iterator[Callable[[], None]]:
        """Has the first layers computed once.

        Args:
            length: How many.

        Yields:
            What is to be called before each forward of the model's closure.
        """
        self._calls.clear()
        self._goes_on = False
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
        """Returns what stands for a layer's forward: the real one in the first probe, its answer thereafter."""

        def answer(*args: Any, **kwargs: Any) -> Any:
            if index == 0:
                caches = (option for option in kwargs.values() if isinstance(option, Cache))
                self._goes_on = self._goes_on or any(cache.get_seq_length() > 0 for cache in caches)
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
        # Where a call goes on with the keys of the one before, no layer may leave its own out.
        if hidden is not None and not self._goes_on and self._next < len(self._calls):
            known = self._calls[self._next]
            untouched = known.versions == _versions(known.output)  # nobody has written to it since
            if untouched and known.inputs.shape == hidden.shape and torch.equal(known.inputs, hidden):
                self._replayed = known.output


def _tensors(output: Any) -> list[Tensor]:
    """Returns the tensors that a layer gave: one, or those of a tuple."""
    return [item for item in (output if isinstance(output, tuple | list) else [output]) if isinstance(item, Tensor)]


def _is_plain(output: Any) -> bool:
    """Tells whether an output can be kept: a tensor, or a tuple of them, whose versions are counted."""
    items = output if isinstance(output, tuple | list) else (output,)
    return all(isinstance(item, Tensor) and not item.is_inference() for item in items)


def _versions(output: Any) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in _tensors(output))
