"""The yardstick: MeZO's step as its paper writes it down, in four passes over the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zolit.probing import Closure
from zolit.ranks import Ranks


class FourPass:
    """θ + εz, a forward, θ - εz, a forward, θ again, and the update, z drawn anew in each (arXiv 2305.17333, Alg. 1).

    Noise has the weights' type, as in the published code, and each pass adds it in place, which asks for less
    arithmetic and memory than that code does. 16-bit weights come back with a rounding error from each step.

    Args:
        model: The model; its parameters that require a gradient are tuned.
        lr: η, the learning rate.
        eps: ε, the probe radius.
        seed: Seed of the first step's direction.

    Attributes:
        copies: The batch is never repeated.
        reduce: Takes the two losses, shape (2,), and returns their mean over all ranks; the identity at first.
    """

    copies = 1

    def __init__(self, model: nn.Module, *, lr: float, eps: float, seed: int = 0) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._generator = torch.Generator(self._parameters[0].device)
        self._lr = lr
        self._eps = eps
        self._seed = seed
        self.ranks = Ranks()

    @torch.no_grad()
    def step(self, closure: Closure) -> float:
        """Makes one step; the closure returns a mean loss, shape (), or one of each example, shape (batch,).

        Returns:
            The mean of the two losses.
        """
        self.move(self._eps)
        first = closure().mean()
        self.move(-2 * self._eps)
        second = closure().mean()
        self.move(self._eps)
        up, down = map(float, self.ranks.mean(torch.stack([first, second])).tolist())
        self.move(-self._lr * (up - down) / (2 * self._eps))
        self._seed += 1
        return (up + down) / 2

    @torch.no_grad()
    def move(self, distance: float) -> None:
        """Adds ``distance`` times this step's z to the weights."""
        self._generator.manual_seed(self._seed)
        for parameter in self._parameters:
            parameter.add_(self.noise(parameter), alpha=distance)

    def noise(self, parameter: Tensor) -> Tensor:
        """Draws z of the next parameter, of its shape and type."""
        return torch.normal(
            0.0, 1.0, parameter.shape, generator=self._generator, dtype=parameter.dtype, device=parameter.device
        )
