"""Only weights to which the loss is sensitive take part."""

from __future__ import annotations

import torch
from torch import Tensor

from zolit.closure import Look
from zolit.selection.bits import BitMask, packed
from zolit.selection.fixed_mask import FixedMask


class SensitiveWeights(FixedMask):
    """m = 1 for the share of all weights with the largest squared gradients (SensZOQ's static mask).

    The gradients are those of the first step's batch, by the one backward pass of a run; the published method takes
    them from another corpus beforehand. Tensors are gone through one by one, so that the candidates of all are kept,
    and one tensor's gradients beside those that the backward pass holds.

    Args:
        density: Share of the model's weights, in (0, 1].

    Raises:
        UserError: If the share is out of its range.
    """

    def __init__(self, density: float = 1e-3) -> None:
        super().__init__(density)

    def prepare(self, look: Look) -> None:
        """Finds the weights before the first step; see the base class."""
        if self._mask is not None:
            return
        weights = [weight for block in self._blocks for weight in block.weights]
        gradients = look.gradients(weights)
        kept = max(round(self._density * int(self._sizes.sum())), 1)
        candidates = [_sizes(gradients[weight]).topk(min(kept, weight.parameter.numel())).values for weight in weights]
        threshold = torch.cat(candidates).topk(kept).values[-1]
        self._mask = BitMask({weight.name: _bits(gradients.pop(weight), threshold) for weight in weights})


def _sizes(gradient: Tensor) -> Tensor:
    return gradient.flatten().float().abs()


def _bits(gradient: Tensor, threshold: Tensor) -> Tensor:
    return packed(_sizes(gradient) >= threshold)
