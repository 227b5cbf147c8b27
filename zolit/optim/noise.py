"""Warns of what turns the difference of two losses into noise. Looked for in the first step, without a forward."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zolit.optim.base_point import Closure
from zolit.optim.blocks import Weight

_LOST = 8.0
"""A perturbation of less than an eighth of the spacing at a weight nearly always rounds back to the weight."""


class NoiseCheck:
    """A closure that observes its first call. The optimizer makes one object, for its first step.

    Args:
        closure: The closure of the step.
        model: The model.
        weights: The weights that this process holds.
    """

    def __init__(self, closure: Closure, model: nn.Module, weights: Sequence[Weight]) -> None:
        self._closure = closure
        self._model = model
        self._weights = weights
        self._dtype: torch.dtype | None = None
        self._varies = False

    def __call__(self) -> Tensor:
        """Calls the closure; see ``Closure``."""
        if self._dtype is not None:
            return self._closure()
        before = self._state()
        loss = self._closure()
        self._dtype = loss.dtype
        self._varies = before != self._state()
        return loss

    def _state(self) -> list[object]:
        """Returns the states of torch's generators, and the versions of the buffers that training may change."""
        devices = {weight.parameter.device for weight in self._weights}
        states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda")]
        training = (module for module in self._model.modules() if module.training)
        buffers = (b for module in training for b in module._buffers.values() if b is not None and not b.is_inference())
        return [*(state.numpy().tobytes() for state in states), *((id(b), b._version) for b in buffers)]

    def warn(self, eps: float) -> None:
        """Warns of each source of noise, in a sentence. Called once, after the first step.

        Args:
            eps: ε, or infinity if no perturbed weight is rounded.
        """
        found = []
        if self._varies:
            found.append(
                "the closure draws random numbers, or changes buffers of the model, so the losses of a step differ "
                "by more than the perturbation (dropout, BatchNorm, a random batch): call model.eval() before "
                "training, and choose the batch outside of the closure"
            )
        if self._dtype is not None and self._dtype.itemsize == 2:
            found.append(
                f"the closure returns a loss of {self._dtype}, which has too few digits for the difference of two "
                "losses: compute it in float32, from model(...).float()"
            )
        if eps < self._least():
            found.append(
                f"eps: {eps} is rounded away in more than half of the weights, because their type or autocast's has "
                f"too few digits: take at least {self._least():.2g}, or a wider type"
            )
        for sentence in found:
            warnings.warn(f"step: {sentence}", RuntimeWarning, stacklevel=6)  # outside of torch's wrappers of step

    def _least(self) -> float:
        """Returns the ε below which perturbations are rounded away in half of the weights. The host waits once."""
        sizes = [weight.parameter.numel() for weight in self._weights]
        values = [weight.parameter.detach() for weight in self._weights]
        norms = torch._foreach_norm(values, 1, dtype=torch.float64)
        means = torch.stack([norm.to(norms[0].device) for norm in norms]).cpu() / torch.tensor(sizes)
        spacing = torch.tensor([_spacing(value) for value in values], dtype=torch.float64)
        least, order = (means * spacing / _LOST).sort()
        share = torch.tensor(sizes, dtype=torch.float64)[order].cumsum(0) / sum(sizes)
        return float(least[int((share < 0.5).sum())])


def _spacing(value: Tensor) -> float:
    """Returns the relative spacing of the numbers with which a weight takes part in a forward."""
    device = value.device.type
    spacing = torch.finfo(value.dtype).eps
    if torch.is_autocast_enabled(device):
        return max(spacing, torch.finfo(torch.get_autocast_dtype(device)).eps)
    return spacing
