"""Finds the layers and the linear modules of a model, and freezes all but the last layers."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn

from zolit.errors import require


def find_layers(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Finds the list of layers of a model: the ``nn.ModuleList`` with the most parameters.

    Returns:
        The name of the list and its members; ("", []) if the model has no ``nn.ModuleList``.
    """
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    name, stack = max(stacks, key=lambda entry: sum(p.numel() for p in entry[1].parameters()), default=("", ()))
    return name, list(stack)


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the linear layers of a model by name, quantised layers included.

    Modules that share their weight with another module are left out, such as an output head that is tied to an
    embedding. Their inputs determine only one of the two parts of the gradient of this weight.
    """
    held = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "in_features", None), int)
        and isinstance(getattr(module, "weight", None), Tensor)
        and held[id(module.weight)] <= 1
    }


def train_last_layers(model: nn.Module, count: int) -> None:
    """Freezes all weights outside of the last layers of a model. Frozen weights of these layers stay frozen.

    A backward pass then computes no gradient below these layers, and keeps no activation of them.

    Args:
        model: The model. ``requires_grad`` of its other weights becomes False.
        count: Number of layers to train, counted from the last one.

    Raises:
        UserError: If the model has not so many layers, or if these layers have no trainable weight.
    """
    _, layers = find_layers(model)
    require(
        1 <= count <= len(layers), f"layers: must lie between 1 and {len(layers)}, the layers of the model, not {count}"
    )
    kept = {id(p) for layer in layers[-count:] for p in layer.parameters() if p.requires_grad}
    require(bool(kept), f"layers: the last {count} layers have no trainable weight; see model.tuning")
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in kept)
