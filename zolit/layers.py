"""The layers of a model, where it holds them in a list."""

from __future__ import annotations

from torch import nn


def stack_of(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Returns the name and the members of the ``nn.ModuleList`` with the most parameters; ("", []) if there is none."""
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    name, stack = max(stacks, key=lambda entry: sum(p.numel() for p in entry[1].parameters()), default=("", ()))
    return name, list(stack)
