"""Observes the inputs of linear layers during a forward pass, and finds their leading subspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zolit.optim.modules.calls import ModelCalls
from zolit.optim.precision import without_autocast


@contextmanager
def watch_inputs(
    model: nn.Module, modules: Mapping[str, nn.Module], on_input: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Passes the inputs of modules to a function, for the time of a forward pass. Used in ``Stage.prepare``.

    Only the first call of each module counts. If the batch is split into micro-batches, only the first one is seen. Of
    an output head that gets a few positions at a time, only the first positions are seen.

    Args:
        model: The model that the closure calls.
        modules: The modules to watch, by name.
        on_input: Called with the name of a module and its input, shape (rows, d), float32. Rows of padding are zero,
            because a GPU would have to wait for the number of the others.
    """
    watched: set[str] = set()
    calls = ModelCalls(model)

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def on_call(_: nn.Module, args: tuple[Any, ...]) -> None:
            if name in watched:
                return
            watched.add(name)
            inputs = args[0].detach()
            kept = calls.kept(inputs)
            rows = inputs.flatten(0, -2).float()
            with without_autocast(rows.device):
                on_input(name, rows if kept is None else rows.masked_fill(~kept.reshape(-1, 1), 0.0))

        return on_call

    with calls.followed(), ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(watch(name)).remove)
        yield


def leading_subspace(rows: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Approximates the leading right singular vectors of X by power iterations. Called once for each module.

    q ← XᵀXq, with orthonormal columns (AGZO, arXiv 2601.17261). One QR decomposition at the end makes them orthonormal
    to rounding; before, Gram-Schmidt is enough, and takes a GPU much less time.

    Args:
        rows: X, shape (rows, d), float32. Rows of zeros have no influence.
        start: Random numbers, shape (d, r), r ≤ d, float32.
        iterations: K, the number of power iterations.

    Returns:
        An orthonormal basis, shape (d, r), float32.
    """
    basis = start
    for _ in range(iterations):
        columns: list[Tensor] = []
        for column in (rows.t() @ (rows @ basis)).unbind(1):
            rest = column
            for other in columns:
                rest = rest - other * other.dot(rest)
            columns.append(nn.functional.normalize(rest, dim=0))
        basis = torch.stack(columns, dim=1)
    orthonormal: Tensor = torch.linalg.qr(basis).Q
    return orthonormal
