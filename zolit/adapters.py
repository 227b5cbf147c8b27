"""Coefficients beside frozen linear layers, over a basis of what comes into them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zolit.errors import require
from zolit.perturbation.watching import linears

COEFFICIENTS, BASIS = "zo_coefficients", "zo_basis"


def attach(model: nn.Module, rank: int, pattern: str = "") -> None:
    """Freezes a model and gives its linear layers coefficients: y = f(x) + (x Vᵀ) Cᵀ (ZO-Act, arXiv 2607.01125).

    C, of shape (d_out, r), begins at 0 and is trainable; V, of shape (r, d), is a buffer of zeros until somebody finds
    a basis. Both are float32 and part of the model's ``state_dict``. The layer's own weight is never touched, and may
    be quantised. Output heads that are tied to an embedding, or are the model's ``get_output_embeddings``, get none. A
    model that has coefficients already keeps them.

    Args:
        model: The model.
        rank: r, or a layer's smaller side.
        pattern: Regular expression; layers in whose names it finds nothing get none.

    Raises:
        UserError: If the rank is not positive or no layer is found.
    """
    require(rank >= 1, f"rank: coefficients need a basis of at least one vector, not {rank}")
    model.requires_grad_(False)
    plain: Any = model
    head = plain.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found: dict[str, Any] = {
        name: m for name, m in linears(model).items() if m is not head and re.search(pattern, name)
    }
    require(bool(found), f"pattern: {pattern!r} matches no linear layer of the model")
    for module in found.values():
        if hasattr(module, COEFFICIENTS):
            getattr(module, COEFFICIENTS).requires_grad_(True)
        else:
            _add(module, min(rank, module.in_features, module.out_features))


def attach_like(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives a model the coefficients that a ``state_dict`` of it has, so that this can be loaded."""
    modules = dict(model.named_modules())
    for name, value in state.items():
        path, _, kind = name.rpartition(".")
        if kind == COEFFICIENTS and path in modules and not hasattr(modules[path], COEFFICIENTS):
            _add(modules[path], value.shape[1])


def _add(module: Any, rank: int) -> None:
    device = module.weight.device
    c = torch.zeros(module.out_features, rank, dtype=torch.float32, device=device)
    module.register_parameter(COEFFICIENTS, nn.Parameter(c))
    module.register_buffer(BASIS, torch.zeros(rank, module.in_features, dtype=torch.float32, device=device))
    module.register_forward_hook(_correct)


def _correct(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    shares = nn.functional.linear(args[0].float(), module.zo_basis.float())
    # An attribute at the time of the call: a probe puts a perturbed view there.
    return output + nn.functional.linear(shares, module.zo_coefficients).to(output.dtype)


def adapted(model: nn.Module) -> dict[str, Any]:
    """Returns the layers with coefficients, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, COEFFICIENTS)}


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Adds C V to the layers' own weights, which must be of a floating type, and takes the coefficients away."""
    for module in adapted(model).values():
        delta = module.zo_coefficients.float() @ module.zo_basis.float()
        module.weight.copy_((module.weight.float() + delta).to(module.weight.dtype))
        del module._parameters[COEFFICIENTS], module._buffers[BASIS]
        for key, hook in list(module._forward_hooks.items()):
            if hook is _correct:
                del module._forward_hooks[key]
