"""Low-rank directions whose input side lies in what an example's tokens bring to the layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from zolit.blocks import Weight
from zolit.hashing import name_key
from zolit.perturbation.low_rank import Cut, LowRank, offsets, parts_of, windows
from zolit.ranks import Ranks

_TOKENS = name_key("tokens")
_SMALLEST = 1e-12


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
        self._mixtures: dict[Weight, Mixtures] = {}
        self._begins: dict[tuple[Weight, tuple[int, ...]], Tensor] = {}
        self._looked_up: set[Weight] = set()

    def begin(self, seed: int, step: int) -> None:
        """Forgets the activations of the last step; see the base class."""
        super().begin(seed, step)
        self._mixtures.clear()
        self._begins.clear()

    def expect(self, keys: Mapping[Weight, Sequence[int]]) -> None:
        """Hashes where the tokens' shares begin in the pool, too; see the base class."""
        super().expect(keys)
        alike: dict[torch.device, list[Weight]] = {}
        for weight in keys:
            alike.setdefault(weight.parameter.device, []).append(weight)
        for weights in alike.values():
            half, _ = self._pools.of(weights[0]).halves
            begins = offsets(parts_of([keys[weight] for weight in weights], self.rank, _TOKENS), half)
            self._begins.update(zip([(weight, tuple(keys[weight])) for weight in weights], begins, strict=True))

    def guide(self, weight: Weight, keys: Sequence[int], inputs: Tensor | None, places: Tensor | None) -> None:
        """Keeps a mixture of each example's activations, where there is none yet; see the base class."""
        if inputs is None:
            self._looked_up.add(weight)
        known = self._mixtures.get(weight)
        if weight in self._looked_up or (known is not None and known.have(keys)):
            return
        assert inputs is not None
        rows = self._mixed(weight, keys, inputs, places)
        if len(set(keys)) < len(keys):  # several rows of one example have the first one's direction
            keys, rows = tuple(dict.fromkeys(keys)), rows[[keys.index(key) for key in dict.fromkeys(keys)]]
        made = Mixtures(tuple(keys), rows)
        self._mixtures[weight] = made if known is None else known.joined(made)

    def _mixed(self, weight: Weight, keys: Sequence[int], inputs: Tensor, places: Tensor | None) -> Tensor:
        """Mixes each example's activations, shape (examples, r, d), of the weight's type."""
        tokens, width = inputs.shape[1:]
        half, _ = self._pools.of(weight).halves
        name = (weight, tuple(keys))
        if name not in self._begins:
            self.expect({weight: keys})
        begins = self._begins[name]
        shares = windows(half, begins, tokens).view(len(keys), self.rank, tokens)
        if places is not None and places.shape == inputs.shape[:2]:
            at = places.unsqueeze(1)
            shares = shares.gather(2, at.clamp(min=0).expand_as(shares)) * (at >= 0)
        # In float16 lengths might be infinite, and the shares of activations that are large nothing.
        rows = inputs.float() if inputs.dtype == torch.float16 else inputs
        wide = torch.promote_types(rows.dtype, torch.float32)
        lengths = torch.linalg.vector_norm(rows, dim=2, dtype=wide).clamp_(min=_SMALLEST)
        mixture = (shares / lengths.unsqueeze(1)).to(rows.dtype) @ rows
        # √d · v/‖v‖ is v over its root mean square.
        return functional.rms_norm(mixture, (width,), eps=_SMALLEST).to(weight.parameter.dtype)

    def exchange(
        self, own: Mapping[Weight, Sequence[int]], every: Mapping[Weight, Sequence[int]], ranks: Ranks
    ) -> None:
        """Gathers the mixtures of all ranks, in one message; see the base class."""
        guided = [weight for weight in own if weight in self._mixtures]
        if not guided:
            return
        mixtures = [self._mixtures[weight].of(own[weight]).float().flatten(1) for weight in guided]
        gathered = ranks.gather(torch.cat(mixtures, dim=1).t()).t()
        parts = torch.split(gathered, [mixture.shape[1] for mixture in mixtures], dim=1)
        for weight, part in zip(guided, parts, strict=True):
            rows = part.to(weight.parameter.dtype).view(len(part), self.rank, -1)
            self._mixtures[weight] = Mixtures(tuple(every[weight]), rows)
        self._known.clear()

    def _inputs(self, weight: Weight, keys: Sequence[int], cut: Cut) -> Tensor:
        mixtures = self._mixtures.get(weight)
        return super()._inputs(weight, keys, cut) if mixtures is None else mixtures.of(keys).flatten(0, 1)

    def scratch_bytes(self) -> int:
        """Returns the bytes of pools, buffers and mixtures."""
        guided = {weight for weight, _ in self._known} & self._mixtures.keys()  # of these, the inputs are mixtures
        counted = sum(self._known[name].inputs.nbytes for name in self._known if name[0] in guided)
        return super().scratch_bytes() - counted + sum(found.rows.nbytes for found in self._mixtures.values())


class Mixtures(NamedTuple):
    """What examples' activations at a weight were mixed to.

    Attributes:
        keys: What names each example's direction.
        rows: Shape (examples, r, d), of the weight's type.
    """

    keys: tuple[int, ...]
    rows: Tensor

    def have(self, keys: Sequence[int]) -> bool:
        """Tells whether these examples are all known."""
        return tuple(keys) == self.keys or self._places.keys() >= set(keys)

    def of(self, keys: Sequence[int]) -> Tensor:
        """Returns the rows of these examples, shape (examples, r, d)."""
        if tuple(keys) == self.keys:
            return self.rows
        places = self._places
        return self.rows[[places[key] for key in keys]]

    def joined(self, others: Mixtures) -> Mixtures:
        """Returns these and others."""
        return Mixtures(self.keys + others.keys, torch.cat([self.rows, others.rows]))

    @property
    def _places(self) -> dict[int, int]:
        return {key: place for place, key in reversed(list(enumerate(self.keys)))}  # of two of a name the first counts
