"""The baseline of the benchmark: MeZO's step as in its paper, with four passes over the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zolit.optim.base_point import Closure
from zolit.optim.collectives import Collectives


class FourPass:
    """Makes MeZO's step in four passes over the weights (arXiv 2305.17333, Alg. 1).

    The passes set θ + εz, θ - εz and θ again, and apply the update; two forwards lie between them. Each pass draws z
    again. Noise has the weights' type, as in the published code. Each pass adds it in place, which needs less
    arithmetic and memory than that code. In 16 bits, each step leaves a rounding error in the weights.

    Args:
        model: The model; its parameters that require a gradient are trained.
        lr: Learning rate η.
        eps: Probe radius ε.
        seed: Seed of the first step's direction.

    Attributes:
        batch_repeats: How often the closure repeats its batch; always 1.
        collectives: Averages the two losses over all processes.
    """

    batch_repeats = 1

    def __init__(self, model: nn.Module, *, lr: float, eps: float, seed: int = 0) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._generator = torch.Generator(self._parameters[0].device)
        self._lr = lr
        self._eps = eps
        self._seed = seed
        self.collectives = Collectives()

    @torch.no_grad()
    def step(self, closure: Closure) -> float:
        """Makes one step.

        Args:
            closure: Returns a mean loss, shape (), or one loss for each example, shape (batch,).

        Returns:
            The mean of the two losses.
        """
        self.move(self._eps)
        first = closure().mean()
        self.move(-2 * self._eps)
        second = closure().mean()
        self.move(self._eps)
        up, down = map(float, self.collectives.all_mean(torch.stack([first, second])).tolist())
        self.move(-self._lr * (up - down) / (2 * self._eps))
        self._seed += 1
        return (up + down) / 2

    @torch.no_grad()
    def move(self, distance: float) -> None:
        """Adds ``distance`` times this step's z to the weights. Called four times a step."""
        self._generator.manual_seed(self._seed)
        for parameter in self._parameters:
            parameter.add_(self.noise(parameter), alpha=distance)

    def noise(self, parameter: Tensor) -> Tensor:
        """Draws z for the next parameter, with its shape and type. Called for each parameter in each pass."""
        return torch.normal(
            0.0, 1.0, parameter.shape, generator=self._generator, dtype=parameter.dtype, device=parameter.device
        )
