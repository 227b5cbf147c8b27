"""Checks before the first step whether the losses of a step can be compared with each other, and warns where not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from zolit.optim.base_point import Closure
from zolit.optim.blocks import Weight

_RANDOM = ("drop", "noise", "jitter")
"""Parts of the names of attributes that modules pass to ``functional.dropout`` or use as the size of a noise."""
_LOST = 0.9
"""Share of weights above which a warning says that probes are lost to rounding."""


def check_first_step(model: nn.Module, weights: Sequence[Weight], eps: float, closure: Closure) -> Closure:
    """Warns of what makes a step mean nothing. Called before the first step of an optimizer.

    Args:
        model: The model.
        weights: The weights that this process tunes.
        eps: ε, the probe radius.
        closure: The closure of the step.

    Returns:
        The closure for the first step, which warns if its loss has 16 bits.
    """
    _warn_of_noise(model)
    _warn_of_lost_probes(weights, eps)
    return _watched(closure)


def _warn_of_noise(model: nn.Module) -> None:
    """Warns of modules in training mode whose output is random or which update buffers.

    The probes of a step would then differ by chance, and their difference divided by 2ε would be noise.
    """
    names = list(_noisy(model))
    if names:
        others = f" and {len(names) - 1} other modules" if len(names) > 1 else ""
        _warn(
            f"step: the model is in training mode, in which {names[0]}{others} draw random numbers or update buffers,"
            " so that the losses of a step differ by chance; call model.eval() before the first step"
        )


def _noisy(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if not module.training:
            continue
        if isinstance(module, _DropoutNd):
            is_noisy = module.p > 0.0
        elif isinstance(module, _NormBase):
            is_noisy = module.track_running_stats
        elif isinstance(module, nn.RReLU):
            is_noisy = module.lower != module.upper
        else:
            values = ((key, value) for key, value in vars(module).items() if isinstance(value, float) and value > 0.0)
            is_noisy = any(part in key for key, _ in values for part in _RANDOM)
        if is_noisy:
            yield f"{name or 'the model'} ({type(module).__name__})"


def _watched(closure: Closure) -> Closure:
    """Returns a closure that warns if its first loss has 16 bits."""
    is_first = True

    def watched() -> Tensor:
        nonlocal is_first
        loss = closure()
        if is_first and loss.dtype.itemsize == 2:
            _warn(
                f"step: the closure returns a loss of {str(loss.dtype).removeprefix('torch.')}, which has two or three "
                "digits, so that probes can hardly differ; compute the loss from logits.float()"
            )
        is_first = False
        return loss

    return watched


def _warn_of_lost_probes(weights: Sequence[Weight], eps: float) -> None:
    """Warns if ε is below the resolution of most weights. The host waits once.

    A perturbed weight θ + εu is rounded to the type of θ. It equals θ where ε|u| is below half of the distance to the
    next number, which is about |θ| times the machine precision of the type.
    """
    lost = [
        (weight.flat.abs() > 2.0 * eps / torch.finfo(weight.parameter.dtype).eps).sum(dtype=torch.float64)
        for weight in weights
    ]
    total = sum(weight.parameter.numel() for weight in weights)
    share = float(torch.stack([count.to(lost[0].device) for count in lost]).sum()) / total
    if share > _LOST:
        dtype = str(weights[0].parameter.dtype).removeprefix("torch.")
        _warn(
            f"eps: {eps} is below the resolution of {share:.0%} of the weights in {dtype}, so that most of a probe is "
            "rounded away; raise eps, or train in float32"
        )


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=8)  # outside of torch's wrappers of step
