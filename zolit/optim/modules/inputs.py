"""Observes the inputs of linear layers during a forward pass, and finds their leading subspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def watch_inputs(
    model: nn.Module, modules: Mapping[str, nn.Module], on_input: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Passes the inputs of modules to a function, for the time of a forward pass. Used in ``Stage.prepare``.

    Only the first call of each module counts. If the batch is split into micro-batches, only the first one is seen.

    Args:
        model: The model that the closure calls.
        modules: The modules to watch, by name.
        on_input: Called with the name of a module and its input, shape (tokens, d). If the model is called with an
            ``attention_mask`` of two dimensions, the rows of padding are left out.
    """
    watched: set[str] = set()
    mask: Tensor | None = None

    def enter(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal mask
        found = kwargs.get("attention_mask")
        mask = found if isinstance(found, Tensor) and found.ndim == 2 else None

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def on_call(_: nn.Module, args: tuple[Any, ...]) -> None:
            if name in watched:
                return
            watched.add(name)
            rows = args[0].detach().flatten(0, -2)
            if mask is not None and mask.numel() == len(rows):
                rows = rows[mask.flatten().bool()]
            on_input(name, rows)

        return on_call

    with ExitStack() as hooks:
        hooks.callback(model.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(watch(name)).remove)
        yield


def leading_subspace(rows: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Approximates the leading right singular vectors of X by power iterations. Called once for each module.

    q ← qr(Xᵀ(Xq)).Q (AGZO, arXiv 2601.17261).

    Args:
        rows: X, shape (tokens, d).
        start: Random numbers, shape (d, r), r ≤ d, float32.
        iterations: K, the number of power iterations.

    Returns:
        An orthonormal basis, shape (d, r), float32.
    """
    x = rows.float()
    basis: Tensor = torch.linalg.qr(start).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(x.t() @ (x @ basis)).Q
    return basis
