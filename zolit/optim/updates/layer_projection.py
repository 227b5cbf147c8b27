"""DiZO: rescales the distance of each layer from its initial weights, every κ steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import Block, Weight
from zolit.optim.randomness import Generators, Step, key_of
from zolit.optim.updates.base import Update
from zolit.optim.updates.gradient import Gradient

_PURPOSE = key_of("projection")


class LayerProjection(Update):
    """Applies another update, and sets θ ← θ0 + (γ/n)(θ - θ0) after every κ steps (DiZO, arXiv 2502.03304).

    For each projected weight, n = ‖θ - θ0‖, and γ begins at n. Then γ takes a few zeroth-order steps. With
    z ~ N(0, 1), clipped to ±τn/ε_p, the losses at γ ± ε_p z give the slope g. The step is γ ← γ - s·n·g·z, clipped to
    (1 ± τ)n. All projected weights are probed together, each with a separate z. An inner step costs two forwards. The
    copy θ0 holds the projected weights only. By default these are the value and key projections, as in the published
    code.

    Args:
        inner: The other update, which makes the usual steps.
        every: κ, the number of steps between two projections.
        steps: Number of inner steps of a projection.
        radius: ε_p, the inner probe radius.
        rate: s, the inner learning rate.
        clip: τ, in (0, 1).
        pattern: Regular expression. Weights in whose names it finds a match are projected.

    Raises:
        UserError: If a number is out of its range, or if the pattern matches no weight.
    """

    def __init__(
        self,
        inner: Update,
        every: int = 50,
        steps: int = 10,
        radius: float = 0.1,
        rate: float = 2.0,
        clip: float = 0.2,
        pattern: str = r"(v|k)_proj\.(.*\.)?weight$",
    ) -> None:
        require(every >= 1, f"every: must be at least 1, not {every}")
        require(steps >= 1, f"inner_steps: must be at least 1, not {steps}")
        require(radius > 0.0, f"radius: the inner probe radius must be positive, not {radius}")
        require(rate >= 0.0, f"rate: the inner rate must be at least 0, not {rate}")
        require(0.0 < clip < 1.0, f"clip: must lie in (0, 1), not {clip}")
        self._inner = inner
        self.uses_estimate, self.backprop_is_chosen = inner.uses_estimate, inner.backprop_is_chosen
        self.reach = inner.reach
        self._every = every
        self._steps = steps
        self._radius = radius
        self._rate = rate
        self._clip = clip
        self._pattern = pattern
        self._generators = Generators()
        self._origins: dict[str, Tensor] = {}
        self._before: dict[Weight, Tensor] = {}

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Copies θ0, and binds the inner update; see ``Stage.bind``."""
        self._inner.bind(model, weights, blocks)
        self._weights = [weight for weight in weights if re.search(self._pattern, weight.name)]
        require(
            bool(self._weights), f"pattern: {self._pattern!r} matches no trainable weight, e.g. {weights[0].name!r}"
        )
        self._origins = {weight.name: weight.flat.clone() for weight in self._weights}

    def prepare(self, base: BasePoint) -> None:
        """Projects the weights in every κ-th step; see ``Stage.prepare``."""
        self._inner.prepare(base)
        if base.step.index == 0 or base.step.index % self._every:
            return
        before = self._before = {weight: weight.flat.clone() for weight in self._weights}
        moved = {weight: before[weight].float() - self._origins[weight.name].float() for weight in self._weights}
        lengths = torch.stack([difference.norm() for difference in moved.values()]).double().cpu()
        gammas = lengths.clone()
        reach = self._clip * lengths
        try:
            for inner in range(self._steps):
                z = self._draws(base.step, inner).clamp(-reach / self._radius, reach / self._radius)
                losses = []
                for sign in (1.0, -1.0):
                    self._move_to(moved, lengths, gammas + sign * self._radius * z)
                    losses.append(base.loss())
                slope = (losses[0] - losses[1]) / (2.0 * self._radius)
                gammas = gammas - self._rate * lengths * slope * z
                gammas = gammas.clamp(lengths - reach, lengths + reach)
            self._move_to(moved, lengths, gammas)
        except BaseException:
            self.rollback()
            raise

    def rollback(self) -> None:
        """Restores the weights from before the projection of this step; see ``Update.rollback``."""
        for weight, theta in self._before.items():
            weight.flat.copy_(theta)
        self._before = {}
        self._inner.rollback()

    def _draws(self, step: Step, inner: int) -> Tensor:
        """Draws z for each projected weight by the key of its name; returns shape (weights,), float64."""
        cpu, z = torch.device("cpu"), []
        for weight in self._weights:  # all share one generator, which is seeded before each draw
            generator = self._generators.seeded(step.key(_PURPOSE, inner, weight.key), cpu)
            z.append(torch.randn(1, generator=generator, dtype=torch.float64))
        return torch.cat(z)

    def _move_to(self, moved: dict[Weight, Tensor], lengths: Tensor, gammas: Tensor) -> None:
        """Moves each projected weight to distance γ from θ0, computed in float32 and rounded once."""
        for (weight, difference), length, gamma in zip(moved.items(), lengths.tolist(), gammas.tolist(), strict=True):
            if length:
                origin = self._origins[weight.name]
                weight.flat.copy_(torch.add(origin.float(), difference, alpha=gamma / length))

    def apply(self, weights: Sequence[Weight], gradient: Gradient, lr: float, step: Step) -> None:
        """Makes one step of the inner update; see ``Update.apply``."""
        self._before = {}
        self._inner.apply(weights, gradient, lr, step)

    def scratch_bytes(self) -> int:
        """Returns the bytes of θ0 and of the inner update; see ``Stage.scratch_bytes``."""
        return self._inner.scratch_bytes() + sum(origin.nbytes for origin in self._origins.values())

    def state_dict(self) -> dict[str, Any]:
        """Returns θ0 and the state of the inner update; see ``Stage.state_dict``."""
        return {**self._inner.state_dict(), "origins": dict(self._origins)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores θ0 and the state of the inner update; see ``Stage.load_state_dict``."""
        self._inner.load_state_dict(state)
        for weight in self._weights:
            self._origins[weight.name] = state["origins"][weight.name].to(weight.parameter.device)
