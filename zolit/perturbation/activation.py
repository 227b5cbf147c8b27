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
_RIDGE = 0.03  # λ
_LOOKED_UP = 0.3  # of the length


class ActivationGuided(LowRank):
    """U = r^(-1/2) Σⱼ aⱼbⱼᵀ, each bⱼ within the span of the example's own activations at the layer.

    The gradient of y = x Wᵀ for one example is G = Σₜ (∂L/∂yₜ) xₜᵀ: its rows lie in the span of the example's T tokens
    there, where dense directions hardly reach (AGZO, arXiv 2601.17261, for a batch and its leading directions). With X
    of rows xₜ/‖xₜ‖ and b = Xᵀ L⁻ᵀ ρ, where L Lᵀ = X Xᵀ + λI and ρ is uniform on the sphere of radius √T, the second
    moment E[b bᵀ] is Xᵀ (X Xᵀ + λI)⁻¹ X: the projection onto that span, for λ that is small. So E[Δ U] = G as without a
    guide, at T/(d + 2) of the variance. λ bounds what tokens do that are nearly a combination of others; that part of a
    gradient is estimated smaller than it is.

    Activations are those of the step's first forward that shows them, and ρ goes by a token's place from the first
    that is not padding, so that padding changes nothing. Vectors, and matrices whose rows are looked up, have no such
    side and get the base class's law, such matrices at 0.3 of its length: all their rows are moved by whatever a few
    of them have brought about, which is most of the noise there is at full length.

    Args:
        rank: r.
    """

    def __init__(self, rank: int = 1) -> None:
        super().__init__(rank)
        self._mixtures: dict[Weight, Mixtures] = {}
        self._begins: dict[tuple[Weight, tuple[int, ...]], Tensor] = {}
        self._looked_up: set[Weight] = set()
        self._span: Span | None = None

    def begin(self, seed: int, step: int) -> None:
        """Forgets the activations of the last step; see the base class."""
        super().begin(seed, step)
        self._mixtures.clear()
        self._begins.clear()
        self._span = None

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
        elif self._span is not None and not self._span.of(inputs):
            self._span = None
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
        if places is not None and places.shape != inputs.shape[:2]:
            places = None
        half, _ = self._pools.of(weight).halves
        name = (weight, tuple(keys))
        if name not in self._begins:
            self.expect({weight: keys})
        shares = windows(half, self._begins[name], inputs.shape[1]).view(len(keys), self.rank, -1)
        if places is not None:
            at = places.unsqueeze(1)
            shares = shares.gather(2, at.clamp(min=0).expand_as(shares)) * (at >= 0)
        with torch.autocast(inputs.device.type, enabled=False):  # in 16 bits X Xᵀ would be wrong by more than λ
            if self._span is None:
                self._span = Span.spanned(inputs, places)
            return self._span.mixed(shares).to(weight.parameter.dtype)

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
        if mixtures is not None:
            return mixtures.of(keys).flatten(0, 1)
        inputs = super()._inputs(weight, keys, cut)
        return inputs.mul_(_LOOKED_UP) if weight in self._looked_up else inputs

    def scratch_bytes(self) -> int:
        """Returns the bytes of pools, buffers, mixtures and the span that was needed last."""
        guided = {weight for weight, _ in self._known} & self._mixtures.keys()  # of these, the inputs are mixtures
        counted = sum(self._known[name].inputs.nbytes for name in self._known if name[0] in guided)
        mixed = sum(found.rows.nbytes for found in self._mixtures.values())
        return super().scratch_bytes() - counted + mixed + (self._span.bytes() if self._span else 0)


class Span(NamedTuple):
    """The span of each example's tokens: layers that read the same activations have it computed once.

    Attributes:
        inputs: The activations, as they came.
        version: How often they had been written to by then, where that is counted.
        tokens: X, of unit rows; those of padding are zero. Shape (examples, tokens, d), float32 or wider.
        radius: √T of each example, shape (examples, 1, 1).
        lower: L, with L Lᵀ = X Xᵀ + λI. Shape (examples, tokens, tokens).
    """

    inputs: Tensor
    version: int | None
    tokens: Tensor
    radius: Tensor
    lower: Tensor

    @classmethod
    def spanned(cls, inputs: Tensor, places: Tensor | None) -> Span:
        """Factors what the tokens, shape (examples, tokens, d), have in common; places of padding are negative."""
        wide = torch.promote_types(inputs.dtype, torch.float32)
        tokens = inputs / torch.linalg.vector_norm(inputs, dim=2, keepdim=True, dtype=wide).clamp_(min=_SMALLEST)
        if places is not None:
            tokens.mul_((places >= 0).unsqueeze(2))
        gram = tokens @ tokens.mT
        gram.diagonal(dim1=1, dim2=2).add_(_RIDGE)
        lower, _ = torch.linalg.cholesky_ex(gram)  # cholesky would have a GPU waited for
        radius = torch.linalg.matrix_norm(tokens, keepdim=True)
        return cls(inputs, _version(inputs), tokens, radius, lower)

    def of(self, inputs: Tensor) -> bool:
        """Tells whether this is the span of the same activations."""
        same = inputs.data_ptr() == self.inputs.data_ptr() and inputs.shape == self.inputs.shape
        return same and _version(inputs) == self.version is not None

    def mixed(self, shares: Tensor) -> Tensor:
        """Returns Xᵀ L⁻ᵀ ρ, shape (examples, r, d), where ρ are shares, shape (examples, r, tokens), brought to √T."""
        rho = functional.normalize(shares.to(self.lower.dtype), dim=2, eps=_SMALLEST) * self.radius
        solved: Tensor = torch.linalg.solve_triangular(self.lower.mT, rho.mT, upper=True)
        return solved.mT @ self.tokens

    def bytes(self) -> int:
        """Returns what is held, activations included."""
        return self.inputs.nbytes + self.tokens.nbytes + self.lower.nbytes


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


def _version(tensor: Tensor) -> int | None:
    """Returns how often a tensor has been written to; inference mode does not count."""
    return None if tensor.is_inference() else tensor._version
