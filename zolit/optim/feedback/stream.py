"""The residual stream of a model: the hidden state that its layers read, add to and pass on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zolit.errors import UserError, require
from zolit.optim.modules.layers import find_layers

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a call of a layer, by position and by name."""


class ResidualStream:
    """Reads and changes the hidden state where layers receive it and pass it on.

    h_{l+1} is the output of layer l, and h_0 the input of the first layer. The last hidden state h_L goes into the
    final norm and the head.

    Args:
        model: The model. Its layers are the members of its largest ``nn.ModuleList``.

    Attributes:
        layers: The layers, by their names in the model, from the first to the last.
        rows: Shape of the hidden state in the latest call within ``tail``, without its width: (batch, tokens), or
            (batch,).

    Raises:
        UserError: If the model has no list of layers.
    """

    def __init__(self, model: nn.Module) -> None:
        path, layers = find_layers(model)
        require(
            bool(layers),
            "model.optimizer: DirectFeedback needs a model with a list of layers (nn.ModuleList), which this model "
            "does not have; use another method",
        )
        self.layers = {f"{path}.{index}": layer for index, layer in enumerate(layers)}
        self.rows = torch.Size()
        self._ends: list[Any] = []

    @contextmanager
    def tail(self) -> Iterator[list[Tensor]]:
        """Makes the graph of autograd begin at the last hidden state, for the time of a forward.

        The layers run without gradients. h_L is detached and requires a gradient, and all that follows runs with
        gradients. The caller disables gradients before, and again afterwards.

        Yields:
            h_L of each call of the model, in the order of the calls. A closure calls the model once for each
            micro-batch.
        """
        leaves: list[Tensor] = []
        layers = list(self.layers.values())
        self._ends = []

        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.rows = hidden_input(args, kwargs).shape[:-1]
            torch.set_grad_enabled(False)

        def end(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            leaves.append(hidden_output(output).detach().requires_grad_())
            torch.set_grad_enabled(True)
            self._ends.append(with_hidden_output(output, leaves[-1]))
            return self._ends[-1]

        with ExitStack() as hooks:
            hooks.callback(layers[0].register_forward_pre_hook(begin, with_kwargs=True).remove)
            hooks.callback(layers[-1].register_forward_hook(end).remove)
            yield leaves

    @contextmanager
    def replayed(self, states: Sequence[Tensor]) -> Iterator[None]:
        """Runs no layer, for the time of a forward of the batch of ``tail``. Called after it, in the same step.

        The layers pass on the given states as h_L. If a state requires a gradient, all that follows runs with
        gradients. The caller disables gradients before, and again afterwards.

        Args:
            states: h_L of each call of the model, of the shapes in the forward within ``tail``.

        Raises:
            UserError: In the forward, if the model is called more often than in that forward.
        """
        layers = list(self.layers.values())
        calls = iter(zip(self._ends, states, strict=True))
        output: Any = None

        def begin(*_: Any, **__: Any) -> Any:
            nonlocal output
            call = next(calls, None)
            if call is None:
                raise UserError("step: the forwards of one batch call the model differently often")
            torch.set_grad_enabled(False)
            output = with_hidden_output(*call)
            return output if len(layers) > 1 else finish()

        def finish(*_: Any, **__: Any) -> Any:
            torch.set_grad_enabled(hidden_output(output).requires_grad)
            return output

        with ExitStack() as replaced:
            for index, layer in enumerate(layers):
                own = begin if index == 0 else finish if index == len(layers) - 1 else lambda *_, **__: output
                before = vars(layer).get("forward")
                layer.__dict__["forward"] = own
                replaced.callback(_restore_forward, layer, before)
            yield

    def forget(self) -> None:
        """Drops the hidden states of the latest ``tail``."""
        self._ends = []


def _restore_forward(layer: nn.Module, forward: object) -> None:
    del layer.__dict__["forward"]
    if forward is not None:
        layer.__dict__["forward"] = forward


def hidden_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Returns the hidden state that a layer receives: the first tensor of floats among its arguments."""
    return hidden_place(args, kwargs)[1]


def hidden_place(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int | str, Tensor]:
    """Returns where the hidden state is among the arguments of a layer, its position or its name, and the state.

    Raises:
        UserError: If no argument is a tensor of floats.
    """
    places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for place, value in places:
        if isinstance(value, Tensor) and value.is_floating_point():
            return place, value
    raise UserError("model.optimizer: DirectFeedback found no hidden state among the arguments of a layer")


def with_hidden_input(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> Arguments:
    """Returns the arguments of a layer with another hidden state."""
    place, _ = hidden_place(args, kwargs)
    if isinstance(place, str):
        return args, {**kwargs, place: hidden}
    return (*args[:place], hidden, *args[place + 1 :]), kwargs


def hidden_output(output: Any) -> Tensor:
    """Returns the hidden state that a layer passes on: its output, or the first member of its output.

    Raises:
        UserError: If this is no tensor.
    """
    hidden = output[0] if isinstance(output, tuple | list) else output
    require(
        isinstance(hidden, Tensor), "model.optimizer: DirectFeedback found no hidden state in the output of a layer"
    )
    return hidden  # type: ignore[no-any-return]  # checked


def with_hidden_output(output: Any, hidden: Tensor) -> Any:
    """Returns the output of a layer with another hidden state."""
    return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden


@contextmanager
def watched_inputs(modules: Mapping[str, nn.Module], on_input: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Passes the first argument of each call of the modules to a function, for the time of the context."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: on_input(name, args[0].detach())

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(watch(name)).remove)
        yield
