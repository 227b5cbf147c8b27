"""Low-rank directions whose input side lies in what an example's tokens bring to the layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.hashing import mix, name_key
from zolit.perturbation.factors import Factors
from zolit.perturbation.low_rank import Cut, LowRank, offsets, windows
from zolit.ranks import Ranks

_TOKENS = name_key("tokens")


class ActivationGuided(LowRank):
    """U = r^(-1/2) Σⱼ aⱼbⱼᵀ with bⱼ = √d · v/‖v‖, v = Σₜ ρⱼₜ xₜ/‖xₜ‖: a mixture of the example's own activations.

    The gradient of y = x Wᵀ for one example is Σₜ (∂L/∂yₜ) xₜᵀ: its rows lie in the span of the example's x, where
    dense directions hardly reach (AGZO, arXiv 2601.17261, for a batch). E[b bᵀ] is the second moment M of the
    normalized activations, about, so that what is estimated is G M and no longer G: a preconditioned gradient.
    Activations are normalized token by token, lest a few tokens with activations a hundred times larger be all that a
    mixture consists of. ρ goes by a token's place from the first that is not padding, so that padding changes nothing.

    The activations are those of the step's first forward that shows them. Vectors, and matrices whose rows are looked
    up, have no such side and get the base class's law.

    Args:
        rank: r.
    """

    def __init__(self, rank: int = 1) -> None:
        super().__init__(rank)
        self._inputs: dict[int, Tensor] = {}
        self._looked_up: set[Weight] = set()

    def begin(self, seed: int, step: int) -> None:
        """Forgets the activations of the last step; see the base class."""
        super().begin(seed, step)
        self._inputs.clear()

    def guide(self, weight: Weight, keys: Sequence[int], inputs: Tensor | None, mask: Tensor | None) -> None:
        """Keeps a mixture of each example's activations, where there is none yet; see the base class."""
        if inputs is None:
            self._looked_up.add(weight)
        if weight in self._looked_up or all(key in self._inputs for key in keys):
            return
        assert inputs is not None
        tokens = inputs.shape[1]
        directions = torch.nn.functional.normalize(inputs.float(), dim=2)
        half, _ = self._pools.of(weight).narrow.chunk(2)
        places = offsets([mix(_TOKENS, part, onto=key) for key in keys for part in range(self.rank)], half)
        shares = windows(half, places, tokens).float().view(len(keys), self.rank, tokens)
        if mask is not None and mask.shape == inputs.shape[:2]:
            places = (mask.cumsum(1) - 1).clamp_(min=0).unsqueeze(1).expand_as(shares)
            shares = shares.gather(2, places) * mask.unsqueeze(1)
        mixture = torch.nn.functional.normalize(shares @ directions, dim=2) * inputs.shape[2] ** 0.5
        for key, own in zip(keys, mixture.to(weight.parameter.dtype), strict=True):
            self._inputs.setdefault(key, own)
        self._last = None

    def exchange(
        self, own: Mapping[Weight, Sequence[int]], every: Mapping[Weight, Sequence[int]], ranks: Ranks
    ) -> None:
        """Gathers the mixtures of all ranks, in one message; see the base class."""
        guided = [weight for weight, keys in own.items() if all(key in self._inputs for key in keys)]
        if not guided:
            return
        mixtures = [torch.stack([self._inputs[key] for key in own[weight]]).float().flatten(1) for weight in guided]
        gathered = ranks.gather(torch.cat(mixtures, dim=1).t()).t()
        parts = torch.split(gathered, [mixture.shape[1] for mixture in mixtures], dim=1)
        for weight, part in zip(guided, parts, strict=True):
            rows = part.to(weight.parameter.dtype).view(len(part), self.rank, -1)
            self._inputs.update(zip(every[weight], rows, strict=True))
        self._last = None

    def _made(self, weight: Weight, keys: Sequence[int], cut: Cut) -> Factors:
        factors = super()._made(weight, keys, cut)
        if all(key in self._inputs for key in keys):
            return factors._replace(inputs=torch.stack([self._inputs[key] for key in keys]))
        return factors

    def scratch_bytes(self) -> int:
        """Returns the bytes of pools, buffers and mixtures."""
        return super().scratch_bytes() + sum(mixture.nbytes for mixture in self._inputs.values())
