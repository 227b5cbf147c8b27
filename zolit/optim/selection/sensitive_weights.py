"""Perturbs only the weights to which the loss is most sensitive."""

from __future__ import annotations

import torch
from torch import Tensor

from zolit.optim.base_point import BasePoint
from zolit.optim.selection.bit_mask import BitMask, packed
from zolit.optim.selection.fixed_mask import FixedMask


class SensitiveWeights(FixedMask):
    """Sets m = 1 for the share of all weights with the largest squared gradients (SensZOQ's static mask).

    The gradients are those of the batch of the first step, from the only backward pass of a run. The published method
    computes them on another corpus before the run. The mask is made tensor by tensor. In addition to the gradients of
    the backward pass, this takes memory for the candidates of all tensors, and for the gradient of one tensor.

    Args:
        density: Share of the weights of the model to perturb, in (0, 1].

    Raises:
        UserError: If the share is out of its range.
    """

    def __init__(self, density: float = 1e-3) -> None:
        super().__init__(density)

    def prepare(self, base: BasePoint) -> None:
        """Makes the mask before the first step, by one forward and one backward pass; see ``Stage.prepare``."""
        if self._mask is not None:
            return
        weights = [weight for block in self.blocks for weight in block.weights]
        gradients = base.gradients(weights)
        kept = max(round(self._density * int(self.sizes.sum())), 1)
        candidates = [_sizes(gradients[weight]).topk(min(kept, weight.parameter.numel())).values for weight in weights]
        threshold = torch.cat(candidates).topk(kept).values[-1]
        self._mask = BitMask({weight.name: _bits(gradients.pop(weight), threshold) for weight in weights})


def _sizes(gradient: Tensor) -> Tensor:
    return gradient.flatten().float().abs()


def _bits(gradient: Tensor, threshold: Tensor) -> Tensor:
    return packed(_sizes(gradient) >= threshold)
