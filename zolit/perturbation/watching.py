"""What comes into linear layers while the model is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules that multiply rows by a matrix of their own, by name: linear layers, quantised ones too.

    Those whose weight is also looked up in an embedding are left out: of a tied output head the rows that come in say
    only what half of its gradient is made of.
    """
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "in_features", None), int)
        and isinstance(getattr(module, "weight", None), Tensor)
        and id(module.weight) not in looked_up
    }


@contextmanager
def watching(model: nn.Module, modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Shows what comes into modules, at the first call of each: of micro-batches the first alone.

    Args:
        model: Who is called.
        modules: Who is watched, by name.
        see: Called with a name and the rows that came in, shape (tokens, d), without those of padding where the model
            is called with an ``attention_mask`` of two dimensions.
    """
    seen: set[str] = set()
    mask: Tensor | None = None

    def enter(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal mask
        found = kwargs.get("attention_mask")
        mask = found if isinstance(found, Tensor) and found.ndim == 2 else None

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(_: nn.Module, args: tuple[Any, ...]) -> None:
            if name in seen:
                return
            seen.add(name)
            rows = args[0].detach().flatten(0, -2)
            if mask is not None and mask.numel() == len(rows):
                rows = rows[mask.flatten().bool()]
            see(name, rows)

        return look

    with ExitStack() as hooks:
        hooks.callback(model.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(watch(name)).remove)
        yield


def leading_inputs(rows: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Returns an orthonormal basis of about the leading right singular vectors of X, by power iterations.

    q ← qr(Xᵀ(Xq)).Q (AGZO, arXiv 2601.17261).

    Args:
        rows: X, shape (tokens, d).
        start: Random numbers, shape (d, r), r ≤ d, float32.
        iterations: K.

    Returns:
        Shape (d, r), float32.
    """
    x = rows.float()
    basis: Tensor = torch.linalg.qr(start).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(x.t() @ (x @ basis)).Q
    return basis
