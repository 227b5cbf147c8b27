"""Standard normal directions: MeZO's (arXiv 2305.17333, Algorithm 1) and the default of every method."""

from __future__ import annotations

from torch import Tensor

from zolit.blocks import Weight
from zolit.hashing import mix
from zolit.perturbation.base import Perturbation
from zolit.scratch import CHUNK, Generators, Scratch


class Gaussian(Perturbation):
    """u ~ N(0, I), each piece drawn from a generator seeded by its key."""

    def __init__(self) -> None:
        self._scratch = Scratch(CHUNK)
        self._generators = Generators()

    def draw(self, weight: Weight, key: int, start: int, stop: int) -> tuple[Tensor, float]:
        """Draws normal numbers; see the base class."""
        device = weight.parameter.device
        z = self._scratch.take(stop - start, device)
        return z.normal_(generator=self._generators.seeded(mix(key, start), device)), 1.0

    def scratch_bytes(self) -> int:
        """Returns the bytes of the buffers drawn into."""
        return self._scratch.bytes()
