"""The trainable weights of a model, their partition into blocks, and the sample of blocks that one step perturbs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from zolit.errors import UserError, require
from zolit.optim.modules.sharing import check_sharing
from zolit.optim.randomness import key_of


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """One trainable parameter tensor.

    Attributes:
        name: Name of the parameter in the model.
        parameter: The tensor.
        key: Hash of the name. Draws depend on this key, not on the position of the weight in a list.
    """

    name: str
    parameter: nn.Parameter
    key: int

    @property
    def flat(self) -> Tensor:
        """The values of the weight as a vector that shares its memory, shape (numel,)."""
        return self.parameter.data.view(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Weights that are perturbed together or not at all.

    Attributes:
        name: Name of the block in reports.
        weights: The weights of the block, at least one.
        key: Hash of the name.
        numel: Number of parameters in the block.
    """

    name: str
    weights: tuple[Weight, ...]
    key: int
    numel: int


def trainable_weights(model: nn.Module) -> list[Weight]:
    """Lists the parameters that require a gradient, and makes them contiguous. Called once, by the optimizer.

    A parameter that several modules share is listed once.

    Raises:
        UserError: If no parameter requires a gradient, or one has 8-bit floats or shares memory with another tensor.
    """
    check_sharing(model)
    weights = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel():
            require(
                parameter.element_size() > 1, f"{name} has floats of 8 bits, which no small step can move: freeze it"
            )
            parameter.data = parameter.data.contiguous()
            weights.append(Weight(name, parameter, key_of(name)))
    require(
        bool(weights),
        "the model has no trainable parameter: set requires_grad=True on the parameters to tune; beside quantised "
        "weights, LoRA and ZOAct train adapters",
    )
    return weights


def partition(weights: Sequence[Weight], by: str = "tensor") -> list[Block]:
    """Groups weights into blocks, in the order in which the blocks first appear. Called once, by the optimizer.

    Args:
        weights: The trainable weights.
        by: ``tensor``: each parameter tensor is a block, as in the experiments of CurvZO (arXiv 2603.21725, section
            4.1). ``layer``: all tensors of one numbered layer (``model.layers.3.``) form a block. Outside of numbered
            layers, all tensors of one module form a block. Any other value is a regular expression. Weights in whose
            names it finds the same text form a block with this text as its name. If the expression has a group, the
            first group counts instead. A weight in whose name it finds nothing is a block by itself.

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
        Block(name, tuple(members), key_of(name), sum(w.parameter.numel() for w in members))
        for name, members in groups.items()
    ]


class CoordinateMask(Protocol):
    """A sample of single parameters. A selection makes it, and draws and updates apply it."""

    def indicator(self, weight: Weight, start: int, stop: int) -> Tensor:
        """Returns m, 0 or 1 for each parameter of a piece. Called whenever the piece is drawn.

        Returns:
            Shape (stop - start,), float32, valid until the next call.
        """
        ...

    def correction(self, weight: Weight, start: int, stop: int) -> Tensor:
        """Returns the factor of m in the update: 1/π, or 1. Called by the update for each piece.

        Returns:
            Shape (stop - start,), float32.
        """
        ...


@dataclass(frozen=True, slots=True)
class BlockSample:
    """The blocks, or parameters of blocks, that one step perturbs. ``Selection.select`` returns it.

    Attributes:
        blocks: All n blocks of the model.
        chosen: Whether each block is perturbed, shape (n,), bool, on the CPU.
        probabilities: π, the inclusion probability of each block, shape (n,), float64; 0 for a block that this step
            cannot perturb.
        corrections: The factor of each block in the update, 1/π or 1, shape (n,), float64.
        needs_squared_norms: Whether the selection learns from ‖u_b‖². The update then measures these norms.
        mask: The perturbed parameters within the sampled blocks; None if whole blocks are perturbed.
    """

    blocks: Sequence[Block]
    chosen: Tensor
    probabilities: Tensor
    corrections: Tensor
    needs_squared_norms: bool = False
    mask: CoordinateMask | None = None
