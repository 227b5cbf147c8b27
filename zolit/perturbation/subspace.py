"""Directions within the subspace that a batch's own activations span, found anew before every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolit.blocks import Weight
from zolit.closure import Look
from zolit.errors import require
from zolit.hashing import mix, name_key
from zolit.perturbation.factors import Factors
from zolit.perturbation.low_rank import Cut, LowRank
from zolit.perturbation.pool import GaussianPool
from zolit.perturbation.watching import leading_inputs, linears, watching
from zolit.scratch import Generators

_START = name_key("power iterations")


class ActivationSubspace(LowRank):
    """Δ = RAᵀ for matrices of linear layers, R ~ N(0, 1), A leading inputs of the batch (AGZO, arXiv 2601.17261).

    For Y = XWᵀ the gradient's rows lie in the span of X's, so that little of it is lost outside of A:
    E[⟨G, Δ⟩ Δ] = G AAᵀ. A, of shape (d, r) and orthonormal, comes from K power iterations on the activations X that a
    look at the batch shows, before each step; X is dropped at once. Embeddings, norms, biases and tied output heads
    get dense directions. Of micro-batches the first alone is seen, of several ranks the first.

    Args:
        rank: r; the paper's ablation has 1 ahead of 4 and 16.
        iterations: K.

    Raises:
        UserError: If one of them is not positive.
    """

    factored = False

    def __init__(self, rank: int = 1, iterations: int = 3) -> None:
        super().__init__(rank)
        require(iterations >= 1, f"iterations: at least one power iteration is needed, not {iterations}")
        self._iterations = iterations
        self._bases: dict[Weight, Tensor] = {}
        self._generators = Generators()
        self._dense = GaussianPool()
        self._seed = 0

    def bind(self, weights: Sequence[Weight]) -> None:
        """Takes all trainable weights; see the base class."""
        super().bind(weights)
        self._dense.bind(weights)
        self._weights = {id(weight.parameter): weight for weight in weights}

    def prepare(self, look: Look) -> None:
        """Finds A of each linear layer in a look at the batch; see the base class."""
        modules = {name: module for name, module in linears(look.model).items() if id(module.weight) in self._weights}
        found: dict[Weight, Tensor] = {}

        def see(name: str, rows: Tensor) -> None:
            weight = self._weights[id(modules[name].weight)]
            if weight in found or not len(rows):
                return
            width = rows.shape[1]
            generator = self._generators.seeded(mix(_START, look.step, weight.key), rows.device)
            start = torch.empty(width, min(self.rank, width), dtype=torch.float32, device=rows.device)
            found[weight] = leading_inputs(rows, start.normal_(generator=generator), self._iterations)

        with watching(look.model, modules, see):
            look()
        if look.ranks.size > 1 and found:
            packed = look.ranks.first(torch.cat([basis.flatten() for basis in found.values()]))
            parts = torch.split(packed, [basis.numel() for basis in found.values()])
            found = {weight: part.view_as(found[weight]) for weight, part in zip(found, parts, strict=True)}
        self._bases = found

    def begin(self, seed: int, step: int) -> None:
        """Begins a step; see the base class."""
        super().begin(seed, step)
        self._dense.begin(seed, step)

    def factors(self, weight: Weight, keys: Sequence[int]) -> Factors | None:  # type: ignore[override]  # only some have A
        """Returns R and A, or None for weights that have no A; see the base class."""
        return super().factors(weight, keys) if weight in self._bases else None

    def _made(self, weight: Weight, keys: Sequence[int], cut: Cut) -> Factors:
        factors, basis = super()._made(weight, keys, cut), self._bases[weight]
        inputs = basis.t().to(factors.inputs.dtype).expand(len(keys), -1, -1)
        rank = inputs.shape[1]
        return Factors(factors.outputs[:, :rank], inputs, factors.scales[:, :rank].sign())

    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Multiplies a piece out, or draws it densely; see the base class."""
        if weight not in self._bases:
            return self._dense.draw(weight, key, start, stop, dtype)
        piece = self._scratch.take(stop - start, weight.parameter.device).zero_()
        factors = self.factors(weight, [key])
        assert factors is not None
        factors.add(piece, start, stop)
        return piece, 1.0

    def scratch_bytes(self) -> int:
        """Returns the bytes of pools, buffers and bases."""
        held = sum(basis.nbytes for basis in self._bases.values())
        return super().scratch_bytes() + self._dense.scratch_bytes() + held
