"""Follows the calls of a model: how many examples a call has, and which rows of its activations are padding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.modules.layers import find_layers


class ModelCalls:
    """Knows the current call of a model, the outermost one. All code that looks at activations asks it for padding.

    A closure may call the model, or the module that the model wraps: prefix tuning calls the latter. The
    ``attention_mask`` of two dimensions of the innermost such module counts. It may have more columns than the input,
    for keys and values that were computed before.

    Args:
        model: The model.
        on_begin: Called with the number of examples when a call begins; None if nobody counts examples.
        on_end: Called with the output of a call; None if nobody looks at it.

    Attributes:
        running: Whether a call is running.
        examples: Number of examples of the latest call: the first length of its first tensor.
        tokens: Number of tokens of each example in the latest call: the second length of its first tensor, or 1.
    """

    def __init__(
        self,
        model: nn.Module,
        on_begin: Callable[[int], None] | None = None,
        on_end: Callable[[Any], None] | None = None,
    ) -> None:
        self._model = model
        self._on_begin = on_begin
        self._on_end = on_end
        self._depth = 0
        self._mask: Tensor | None = None
        self._columns: Tensor | None = None
        self._known: dict[torch.Size, Tensor | None] = {}
        self.examples = self.tokens = 0

    @property
    def running(self) -> bool:
        """Whether a call of the model is running."""
        return self._depth > 0

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follows all calls of the model, for the time of the context."""
        with ExitStack() as hooks:
            for module in _callable_parts(self._model):
                hooks.callback(module.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(self._leave, always_call=True).remove)
            yield

    def _enter(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._depth += 1
        outermost = self._depth == 1
        if outermost:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim]
            require(bool(tensors), "step: the model was called without a tensor, so examples cannot be counted")
            self.examples = len(tensors[0])
            self.tokens = tensors[0].shape[1] if tensors[0].ndim > 1 else 1
        mask = _argument(module, args, kwargs, "attention_mask")
        fits = isinstance(mask, Tensor) and mask.ndim == 2 and len(mask) == self.examples
        if fits or outermost:
            self._mask = mask.bool() if fits else None
            columns = _argument(module, args, kwargs, "logits_to_keep")
            self._columns = columns if isinstance(columns, Tensor) and columns.ndim == 1 else None
            self._known.clear()
        if outermost and self._on_begin is not None:
            self._on_begin(self.examples)

    def _leave(self, _: nn.Module, __: object, output: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and self._on_end is not None:
            self._on_end(output)

    def kept(self, activations: Tensor) -> Tensor | None:
        """Returns which rows of activations belong to tokens of the text, and not to padding.

        Called for activations within a call, or of a module that the closure calls after it. Activations of fewer
        columns than the mask belong to its last columns, or to those that the tensor ``logits_to_keep`` names.

        Args:
            activations: Shape (examples, ..., d), with the tokens in one of the dimensions between, or
                (examples·tokens, d).

        Returns:
            bool, of the shape of the activations without d. None if the model was called without a mask, or if rows are
            not those of tokens.
        """
        shape = activations.shape[:-1]
        if self._mask is None:
            return None
        if shape not in self._known:
            self._known[shape] = self._expanded(self._mask, shape)
        return self._known[shape]

    def _expanded(self, mask: Tensor, shape: torch.Size) -> Tensor | None:
        examples, width = mask.shape
        whole = (self.tokens, width)
        if len(shape) == 1:
            flat = [tokens for tokens in whole if examples * tokens == shape[0]]
            return mask[:, -flat[0] :].flatten() if flat else None
        if shape == mask.shape:
            return mask
        if len(shape) == 2 and shape[0] == examples:
            named = self._columns is not None and len(self._columns) == shape[1]
            part = mask[:, self._columns] if named else mask[:, -shape[1] :]
            # Without a single token, the columns are others, for example that of a first token.
            return part | ~part.any(1, keepdim=True) if shape[1] < width else None
        places = [place for place, length in enumerate(shape) if place and length in whole]
        if not places or shape[0] != examples:
            return None
        length = shape[places[0]]
        ones = [1] * (len(shape) - 1)
        ones[places[0] - 1] = length
        return mask[:, -length:].view(examples, *ones).expand(shape)


def _callable_parts(model: nn.Module) -> list[nn.Module]:
    """Returns the model and the modules in it that contain all of its layers; a closure may call any of them."""
    path = find_layers(model)[0].split(".")
    return [model, *(model.get_submodule(".".join(path[:length])) for length in range(1, len(path)))]


def _argument(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Any:
    """Returns an argument of a call, whether it is passed by name or by position; None if it is not passed."""
    if name in kwargs or len(args) < 2:
        return kwargs.get(name)
    names = list(inspect.signature(module.forward).parameters)
    place = names.index(name) if name in names else len(args)
    return args[place] if place < len(args) else None
