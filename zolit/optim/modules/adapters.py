"""Adds trainable coefficients to frozen linear layers, over a basis of the inputs of the layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.modules.layers import linear_modules
from zolit.optim.precision import without_autocast

COEFFICIENTS, BASIS = "zo_coefficients", "zo_basis"


def attach(model: nn.Module, rank: int, pattern: str = "") -> None:
    """Freezes a model, and adds coefficients to its linear layers. Called once, when the optimizer is made.

    y = f(x) + (x Vᵀ) Cᵀ (ZO-Act, arXiv 2607.01125). C has shape (d_out, r), begins at 0 and is trainable. V has shape
    (r, d). It is a buffer of zeros until ``OneShotBasis`` finds a basis. Both are float32 and part of the
    ``state_dict`` of the model. The weight of the layer is never written, and may be quantised. Layers that share
    a weight get no coefficients, nor does the output head (``get_output_embeddings``). A layer that has coefficients
    already keeps them.

    Args:
        model: The model.
        rank: r. In a layer with a smaller side, r is the length of this side.
        pattern: Regular expression. Layers in whose names it finds nothing get no coefficients.

    Raises:
        UserError: If the rank is not positive or no layer is found.
    """
    require(rank >= 1, f"rank: coefficients need a basis of at least one vector, not {rank}")
    model.requires_grad_(False)
    plain: Any = model
    head = plain.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found: dict[str, Any] = {
        name: m for name, m in linear_modules(model).items() if m is not head and re.search(pattern, name)
    }
    require(bool(found), f"pattern: {pattern!r} matches no linear layer of the model")
    for module in found.values():
        if hasattr(module, COEFFICIENTS):
            getattr(module, COEFFICIENTS).requires_grad_(True)
        else:
            _add(module, min(rank, module.in_features, module.out_features))


def attach_from_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Adds to a model the coefficients that a ``state_dict`` contains. Called before the ``state_dict`` is loaded."""
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
    with without_autocast(output.device):  # a probe moves coefficients by less than 16 bits can resolve
        projected = nn.functional.linear(args[0].float(), module.zo_basis.float())
        # The attribute is read in each call, because a probe replaces it by a perturbed view.
        return output + nn.functional.linear(projected, module.zo_coefficients).to(output.dtype)


def adapted_modules(model: nn.Module) -> dict[str, Any]:
    """Returns the layers that have coefficients, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, COEFFICIENTS)}


@torch.no_grad()
def merge_coefficients(model: nn.Module) -> None:
    """Adds C V to the weights of the layers, and removes the coefficients. Called for an export.

    Raises:
        UserError: If a weight is quantised: rounding would lose the coefficients.
    """
    for name, module in adapted_modules(model).items():
        require(
            module.weight.is_floating_point() and module.weight.element_size() > 1,
            f"the coefficients of ZOAct cannot be merged into {name}, which is quantised ({module.weight.dtype})",
        )
        delta = module.zo_coefficients.float() @ module.zo_basis.float()
        module.weight.copy_((module.weight.float() + delta).to(module.weight.dtype))
        del module._parameters[COEFFICIENTS], module._buffers[BASIS]
        for key, hook in list(module._forward_hooks.items()):
            if hook is _correct:
                del module._forward_hooks[key]
