"""The residual stream of a model: the hidden state that its layers read, add to and pass on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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

        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.rows = hidden_input(args, kwargs).shape[:-1]
            torch.set_grad_enabled(False)

        def end(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            leaves.append(hidden_output(output).detach().requires_grad_())
            torch.set_grad_enabled(True)
            return with_hidden_output(output, leaves[-1])

        with ExitStack() as hooks:
            hooks.callback(layers[0].register_forward_pre_hook(begin, with_kwargs=True).remove)
            hooks.callback(layers[-1].register_forward_hook(end).remove)
            yield leaves


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
