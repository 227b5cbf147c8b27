"""Runs one layer again with the output of one of its modules moved, and sees where the movement arrives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from zolit.optim.feedback.stream import hidden_output
from zolit.optim.randomness import Generators, key_of

_MOVED = 4.0
_SPREAD = (0.5, 2.0)
_TYPICAL, _NEARLY_ALL = 0.02, 0.1
OUTPUT = ""
"""Stands for the output of the layer, where other places are inputs of its modules."""


class LayerTrial:
    """Runs a layer on the arguments of one of its calls, while modules with matrices keep their outputs.

    Because the outputs of all matrices are kept, what remains between a module and the output of the layer is what adds
    to the residual stream: sums, and norms. A module whose movement arrives unchanged, up to a constant gain, is added
    to the stream. A movement has another length at each token, so that a norm is never taken for a constant gain.

    Args:
        layer: The layer.
        args: The arguments of its call, by position.
        kwargs: The arguments of its call, by name. Caches of keys and values are copied before each run.
        kept: Which tokens belong to the text, of the shape of the hidden state without its width; None is all.

    Attributes:
        inputs: Input of each module at the bottom of the layer, by the name of the module in the layer, where nothing
            was moved. Modules that are called more than once, or without a tensor, are left out.
        outputs: The outputs of these modules in this run.
        feeders: For each of these modules, the module whose output is its input, as the same object, if there is one.
        hidden: The output of the layer in this run, shape (..., d).
    """

    def __init__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Tensor | None = None
    ) -> None:
        self._layer = layer
        self._arguments = copy.deepcopy((args, kwargs))
        modules: dict[str, nn.Module] = dict(layer.named_modules())
        self._leaves = {name: module for name, module in modules.items() if name and _is_leaf(module)}
        self._recorded: dict[str, list[Any]] = {name: [] for name in self._leaves}
        seen: dict[str, list[Tensor]] = {name: [] for name in self._leaves}
        made_by: dict[int, tuple[str, Any]] = {}
        self.feeders: dict[str, str] = {}

        def record(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
            def on_call(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                self._recorded[name].append(copy.deepcopy(output))  # a layer may add to an output in place
                if args and isinstance(args[0], Tensor):
                    seen[name].append(args[0].clone())
                    if id(args[0]) in made_by:
                        self.feeders[name] = made_by[id(args[0])][0]
                made_by[id(output)] = (name, output)  # holds the object, so that no other gets its id

            return on_call

        self.hidden = self._run(record)
        finite = self.hidden.isfinite().all(-1)  # padding may be NaN
        self._kept = finite if kept is None else finite & kept
        once = [name for name in seen if len(seen[name]) == len(self._recorded[name]) == 1]
        self.inputs = {name: seen[name][0] for name in once}
        self.outputs = {name: self._recorded[name][0] for name in once}
        self._arrivals: dict[str, dict[str, float]] = {}

    def module(self, name: str) -> nn.Module:
        """Returns a module by its name in the layer."""
        return self._leaves[name]

    def holds_matrix(self, name: str) -> bool:
        """Returns whether a module has a parameter of two dimensions or more."""
        return _holds_matrix(self._leaves[name])

    def arrivals(self, name: str) -> dict[str, float]:
        """Moves the output of a module. Called for modules whose output has the size of the hidden state.

        Returns:
            The places at which the movement arrives unchanged, up to a constant gain, and this gain: ``OUTPUT``, or the
            names of modules, in the order of their calls. Modules that return their input, such as dropout, are left
            out.
        """
        if name not in self._arrivals:
            reached: dict[str, Tensor] = {}
            moved = self._run(lambda other: self._moving(other, name, reached))
            gains = {OUTPUT: self._gain(moved, self.hidden)}
            for other, value in reached.items():
                if other != name and other in self.inputs and value.numel() == self.hidden.numel():
                    gains[other] = self._gain(value, self.inputs[other])
            self._arrivals[name] = {place: gain for place, gain in gains.items() if gain is not None}
        return self._arrivals[name]

    def _moving(
        self, name: str, moved: str, reached: dict[str, Tensor]
    ) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        calls = iter(self._recorded[name])

        def on_call(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if args and isinstance(args[0], Tensor) and not _unchanged(args[0], output):
                reached.setdefault(name, args[0].clone())
            if self.holds_matrix(name):
                output = copy.deepcopy(next(calls))
            return output + self._movement.view_as(output).to(output.dtype) if name == moved else output

        return on_call

    @cached_property
    def _movement(self) -> Tensor:
        """A random movement, of the shape of the hidden state, float32. Large, so that 16 bits resolve it."""
        generator = Generators().seeded(key_of("movement of a module"), torch.device("cpu"))
        rows = self.hidden.reshape(-1, self.hidden.shape[-1]).float()
        typical = rows[self._kept.flatten()].std(0, correction=0).median().clamp(min=1e-3)
        low, high = _SPREAD
        lengths = torch.rand(len(rows), 1, generator=generator, dtype=torch.float32) * (high - low) + low
        movement = lengths * torch.randn(rows.shape, generator=generator, dtype=torch.float32)
        return (movement.to(rows.device) * (_MOVED * typical)).view(self.hidden.shape)

    def _gain(self, moved: Tensor, before: Tensor) -> float | None:
        """Returns c where a movement v has arrived as c·v, else None."""
        change = (moved.float() - before.float()).reshape(self.hidden.shape)[self._kept]
        movement = self._movement[self._kept]
        large = movement.abs() > movement.abs().median()
        gain = float((change[large] / movement[large]).median())
        error = ((change - gain * movement).abs() / movement.abs().median()).flatten()
        order = error.sort().values
        typical, nearly_all = float(order[len(order) // 2]), float(order[int(0.9 * (len(order) - 1))])
        fits = abs(gain) > _TYPICAL and typical < _TYPICAL * abs(gain) and nearly_all < _NEARLY_ALL * abs(gain)
        return gain if fits else None

    def _run(self, hook: Callable[[str], Callable[[nn.Module, tuple[Any, ...], Any], Any]]) -> Tensor:
        args, kwargs = copy.deepcopy(self._arguments)
        with ExitStack() as hooks:
            for name, module in self._leaves.items():
                hooks.callback(module.register_forward_hook(hook(name)).remove)
            return hidden_output(self._layer.forward(*args, **kwargs))


def _unchanged(value: Tensor, output: Any) -> bool:
    return isinstance(output, Tensor) and value.shape == output.shape and torch.equal(value, output)


def _holds_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _is_leaf(module: nn.Module) -> bool:
    """Returns whether a module has no children, or matrices of its own and no children with matrices, as experts."""
    children = list(module.children())
    own = any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    return not children or (own and not any(map(_holds_matrix, children)))
