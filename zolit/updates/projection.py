"""How far layers have gone from where they began is set anew now and then, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.closure import Look
from zolit.directions import Directions
from zolit.errors import require
from zolit.hashing import mix, name_key
from zolit.scratch import Generators
from zolit.updates.base import Update

_PURPOSE = name_key("projection")


class LayerProjection(Update):
    """Another update's steps and, after every κ of them, θ ← θ0 + (γ/n)(θ - θ0) (DiZO, arXiv 2502.03304).

    n = ‖θ - θ0‖ of each projected weight; its γ begins at n and takes a few zeroth-order steps of its own: with
    z ~ N(0, 1), of at most τn/ε_p either way, losses at γ ± ε_p z give g, and γ ← γ - s·n·g·z, within (1 ± τ)n. All
    projected weights are probed together, each with a z of its own: two forwards an inner step. θ0 is kept, of the
    projected weights alone: by default the value and key projections, as in the published code.

    Args:
        inner: What moves the weights otherwise.
        every: κ.
        steps: Inner steps.
        radius: ε_p.
        rate: s.
        clip: τ, in (0, 1).
        pattern: Regular expression; weights in whose names it finds something are projected.
        seed: Of z.

    Raises:
        UserError: If a number is out of its range, or no weight's name fits the pattern.
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
        seed: int = 0,
    ) -> None:
        require(every >= 1, f"every: must be at least 1, not {every}")
        require(steps >= 1, f"inner_steps: must be at least 1, not {steps}")
        require(radius > 0.0, f"radius: the inner probe radius must be positive, not {radius}")
        require(rate >= 0.0, f"rate: the inner rate must be at least 0, not {rate}")
        require(0.0 < clip < 1.0, f"clip: must lie in (0, 1), not {clip}")
        self._inner = inner
        self._every = every
        self._steps = steps
        self._radius = radius
        self._rate = rate
        self._clip = clip
        self._pattern = pattern
        self._seed = seed
        self._generators = Generators()
        self._origins: dict[str, Tensor] = {}
        self._before: dict[Weight, Tensor] = {}

    def bind(self, weights: Sequence[Weight]) -> None:
        """Keeps θ0; see the base class."""
        self._inner.bind(weights)
        self._weights = [weight for weight in weights if re.search(self._pattern, weight.name)]
        require(
            bool(self._weights), f"pattern: {self._pattern!r} matches no trainable weight, e.g. {weights[0].name!r}"
        )
        self._origins = {weight.name: weight.flat.clone() for weight in self._weights}

    def prepare(self, look: Look) -> None:
        """Projects where it is due; see the base class."""
        self._inner.prepare(look)
        if look.step == 0 or look.step % self._every:
            return
        before = self._before = {weight: weight.flat.clone() for weight in self._weights}
        moved = {weight: before[weight].float() - self._origins[weight.name].float() for weight in self._weights}
        lengths = torch.stack([difference.norm() for difference in moved.values()]).double().cpu()
        gammas = lengths.clone()
        reach = self._clip * lengths
        try:
            for step in range(self._steps):
                z = self._draws(look.step, step).clamp(-reach / self._radius, reach / self._radius)
                losses = []
                for sign in (1.0, -1.0):
                    self._place(moved, lengths, gammas + sign * self._radius * z)
                    losses.append(look())
                slope = (losses[0] - losses[1]) / (2.0 * self._radius)
                gammas = gammas - self._rate * lengths * slope * z
                gammas = gammas.clamp(lengths - reach, lengths + reach)
            self._place(moved, lengths, gammas)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Puts weights back to where they were before the step's projection; see the base class."""
        for weight, theta in self._before.items():
            weight.flat.copy_(theta)
        self._before = {}

    def _draws(self, step: int, inner: int) -> Tensor:
        """Returns z of each projected weight, shape (weights,), float64, by names and not by places."""
        cpu, z = torch.device("cpu"), []
        for weight in self._weights:  # one generator for all: each draws before it is seeded anew
            generator = self._generators.seeded(mix(self._seed, _PURPOSE, step, inner, weight.key), cpu)
            z.append(torch.randn(1, generator=generator, dtype=torch.float64))
        return torch.cat(z)

    def _place(self, moved: dict[Weight, Tensor], lengths: Tensor, gammas: Tensor) -> None:
        """Puts weights at their γ, computed in float32 and rounded once."""
        for (weight, difference), length, gamma in zip(moved.items(), lengths.tolist(), gammas.tolist(), strict=True):
            if length:
                origin = self._origins[weight.name]
                weight.flat.copy_(torch.add(origin.float(), difference, alpha=gamma / length))

    def apply(
        self, weights: Sequence[Weight], directions: Directions, coefficients: Sequence[float], lr: float, key: int
    ) -> None:
        """Makes one step of the other update; see the base class."""
        self._before = {}
        self._inner.apply(weights, directions, coefficients, lr, key)

    def scratch_bytes(self) -> int:
        """Returns the bytes of θ0 and of the other update."""
        return self._inner.scratch_bytes() + sum(origin.nbytes for origin in self._origins.values())

    def state_dict(self) -> dict[str, Any]:
        """Returns θ0 and the other update's state."""
        origins = {name: origin.clone() for name, origin in self._origins.items()}
        return {**self._inner.state_dict(), "origins": origins, "seed": self._seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them up."""
        self._inner.load_state_dict(state)
        self._seed = state["seed"]
        for weight in self._weights:
            self._origins[weight.name] = state["origins"][weight.name].to(weight.parameter.device)
