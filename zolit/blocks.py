"""What a selection chooses among: a model's trainable weights, partitioned into named blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from zolit.errors import UserError, require
from zolit.hashing import name_key


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """One trainable parameter tensor.

    Attributes:
        name: Its name in the model.
        parameter: The tensor itself.
        key: Hash of the name: draws depend on it and not on where the weight stands in a list.
    """

    name: str
    parameter: nn.Parameter
    key: int

    @property
    def flat(self) -> Tensor:
        """The weight's values as a vector that shares its memory, shape (numel,)."""
        return self.parameter.data.view(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Weights that are perturbed together or not at all.

    Attributes:
        name: What callbacks call it.
        weights: At least one weight.
        key: Hash of the name.
        numel: Parameters in the block.
    """

    name: str
    weights: tuple[Weight, ...]
    key: int
    numel: int


def trainable_weights(model: nn.Module) -> list[Weight]:
    """Makes the parameters that require a gradient contiguous, and lists them, tied ones once.

    Raises:
        UserError: If there is none.
    """
    weights = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel():
            parameter.data = parameter.data.contiguous()
            weights.append(Weight(name, parameter, name_key(name)))
    require(bool(weights), "the model has no trainable parameter: leave requires_grad=True on those to be tuned")
    return weights


def partition(weights: Sequence[Weight], by: str = "tensor") -> list[Block]:
    """Groups weights into blocks, in the order in which they first appear.

    Args:
        weights: The trainable weights.
        by: ``tensor``: each parameter tensor is a block, as in the experiments of CurvZO (arXiv 2603.21725, section
            4.1). ``layer``: the tensors of one numbered layer (``model.layers.3.``) are a block, and so are the
            tensors of each module outside of the layers. Anything else is a regular expression: weights in whose
            names it finds the same text share a block named by this text (by its first group, where it has one), and
            a weight in whose name it finds nothing is a block by itself.

    Raises:
        UserError: If ``by`` is not a valid regular expression, or finds nothing in any name.
    """
    try:
        pattern = re.compile(by)
    except re.error as error:
        msg = f"blocks: {by!r} is neither 'tensor' nor 'layer' nor a valid regular expression ({error})"
        raise UserError(msg) from None
    groups: dict[str, list[Weight]] = {}
    found = by in ("tensor", "layer")
    for weight in weights:
        if by == "tensor":
            name = weight.name
        elif by == "layer":
            layer = re.match(r".*?\.\d+(?=\.)", "." + weight.name)
            name = layer[0][1:] if layer else weight.name.rpartition(".")[0] or weight.name
        else:
            match = pattern.search(weight.name)
            found = found or match is not None
            name = ((match[1] if pattern.groups else None) or match[0]) if match else weight.name
        groups.setdefault(name, []).append(weight)
    require(found, f"blocks: the regular expression {by!r} matches no trainable weight, e.g. {weights[0].name!r}")
    return [
        Block(name, tuple(members), name_key(name), sum(w.parameter.numel() for w in members))
        for name, members in groups.items()
    ]
