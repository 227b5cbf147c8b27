"""Finds the layers and the linear modules of a model."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn


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
