"""Keeps the gradients of embeddings and of the output head as thin factors, and forms them piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from zolit.optim.modules.layers import find_layers
from zolit.optim.precision import without_autocast

_Function = Callable[..., Any]


class ThinGradient:
    """The gradient of a matrix, shape (n, d), as a sum of thin terms. It takes less memory than the matrix.

    A lookup in an embedding adds to the rows of its tokens alone. A product of m rows adds δᵀx, with the gradient δ of
    its result, shape (m, n), and its input x, shape (m, d).

    Args:
        shape: (n, d).
        device: The device of the matrix.
    """

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self._shape = shape
        self._device = device
        self._terms: list[_Rows | _Product] = []
        self._sum: Tensor | None = None

    def add(self, term: _Rows | _Product) -> None:
        """Adds a term. If the terms would take more memory than the matrix, they are added up, in float32."""
        self._terms.append(term)
        if sum(term.numel for term in self._terms) > self._shape.numel():
            self._sum = self.rows(0, self._shape[0])
            self._terms = []

    def rows(self, first: int, stop: int) -> Tensor:
        """Returns rows of the gradient, shape (stop - first, d), float32. The result is the caller's."""
        found = torch.zeros(stop - first, self._shape[1], dtype=torch.float32, device=self._device)
        if self._sum is not None:
            found += self._sum[first:stop]
        with without_autocast(self._device):
            for term in self._terms:
                found += term.rows(first, stop)
        return found


@dataclass(frozen=True)
class _Rows:
    """The gradients of rows that were looked up: ids of shape (m,), gradients of shape (m, d)."""

    ids: Tensor
    gradients: Tensor

    @property
    def numel(self) -> int:
        return self.gradients.numel()

    def rows(self, first: int, stop: int) -> Tensor:
        # torch's backward of an embedding gives the same sum each time, also on a GPU. It leaves one row out.
        ids = self.ids.clamp(first - 1, stop) - first
        none = stop - first
        ids = torch.where(ids < 0, none, ids)
        summed: Tensor = torch.ops.aten.embedding_dense_backward(self.gradients.float(), ids, none + 1, none, False)
        return summed[:none]


@dataclass(frozen=True)
class _Product:
    """A product x Wᵀ: the gradient δ of its result, shape (m, n), and x, shape (m, d)."""

    result: Tensor
    inputs: Tensor

    @property
    def numel(self) -> int:
        return self.result.numel() + self.inputs.numel()

    def rows(self, first: int, stop: int) -> Tensor:
        return self.result[:, first:stop].t().float() @ self.inputs.float()


class ThinGradients:
    """Collects thin gradients in a forward and its backward pass.

    Lookups and products that use a matrix outside of the layers compute with a copy without gradient. Their results
    pass their gradients on here, and autograd forms no gradient of the matrix. A tied embedding, which is the output
    head too, is the largest matrix of many models, and the gradients of both uses would otherwise be two more. A use
    stays with autograd if its terms would take more memory than the matrix.

    Args:
        model: The model.
        parameters: The trainable parameters.

    Attributes:
        found: The thin gradients by the id of the parameter. The forward pass makes them, the backward pass fills them.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        inside = {id(p) for layer in find_layers(model)[1] for p in layer.parameters()}
        self._model = model
        self._matrices = {id(p): p for p in parameters if p.ndim == 2 and id(p) not in inside}
        self.found: dict[int, ThinGradient] = {}

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Replaces the matrices in their modules for the time of a forward and its backward pass."""
        entries = []
        try:
            for module in self._model.modules():
                for name, parameter in module._parameters.items():
                    if id(parameter) in self._matrices:
                        # Python finds an attribute in the __dict__ of a module before the entry in _parameters.
                        module.__dict__[name] = _View.of(self._matrices[id(parameter)], self)
                        entries.append((module, name))
            yield
        finally:
            for module, name in entries:
                del module.__dict__[name]

    def look_up(self, weight: nn.Parameter, func: _Function, args: Sequence[Any], kwargs: Any) -> Tensor | None:
        """Computes a lookup in an embedding. Returns None if autograd must compute it."""
        names = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
        options = {**dict(zip(names, args[2:], strict=False)), **kwargs}
        ids = args[0]
        if ids.numel() >= len(weight) or options.get("max_norm") is not None or options.get("scale_grad_by_freq"):
            return None
        rows: Tensor = func(ids, weight.detach(), *args[2:], **kwargs).requires_grad_()
        padding, thin = options.get("padding_idx"), self._thin(weight)

        def keep(looked_up: Tensor) -> None:
            assert looked_up.grad is not None
            gradients, looked_up.grad = looked_up.grad.flatten(0, -2), None
            if padding is not None:
                gradients = gradients.masked_fill((ids == padding % len(weight)).view(-1, 1), 0.0)
            thin.add(_Rows(ids.flatten(), gradients))

        rows.register_post_accumulate_grad_hook(keep)  # type: ignore[no-untyped-call]  # untyped there
        return rows.clone()  # the model may write to the result, and must not write to a leaf

    def multiply(self, weight: nn.Parameter, func: _Function, args: Sequence[Any], kwargs: Any) -> Tensor | None:
        """Computes a product x Wᵀ. Returns None if autograd must compute it."""
        inputs = args[0]
        if inputs.numel() // inputs.shape[-1] * sum(weight.shape) >= weight.numel():
            return None
        result: Tensor = func(inputs, weight.detach(), *args[2:], **kwargs)
        if not result.requires_grad:
            return None
        inputs, thin = inputs.detach().flatten(0, -2), self._thin(weight)

        def keep(own: Tensor) -> None:
            thin.add(_Product(own.flatten(0, -2), inputs))

        result.register_hook(keep)  # type: ignore[no-untyped-call]  # untyped there
        return result

    def _thin(self, weight: nn.Parameter) -> ThinGradient:
        return self.found.setdefault(id(weight), ThinGradient(weight.shape, weight.device))


class _View(Tensor):
    """Stands for a matrix in its modules: any function of torch computes with the matrix, but for its thin uses."""

    _is_param = True  # makes isinstance(view, nn.Parameter) true
    parameter: nn.Parameter
    thin: ThinGradients

    @classmethod
    def of(cls, parameter: nn.Parameter, thin: ThinGradients) -> Self:
        view = parameter.as_subclass(cls)
        view.parameter, view.thin = parameter, thin
        return view

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Computes a function whose arguments include views. Called by torch."""
        plain, options = tree_map_only(_View, lambda view: view.parameter, (tuple(args), kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            view = args[1] if len(args) > 1 else None
            if func in _USES and isinstance(view, _View) and torch.is_grad_enabled():
                result = _USES[func](view.thin, view.parameter, func, plain, options)
                if result is not None:
                    return result
            return func(*plain, **options)


_USES: dict[Any, Callable[..., Tensor | None]] = {
    functional.embedding: ThinGradients.look_up,
    functional.linear: ThinGradients.multiply,
}
