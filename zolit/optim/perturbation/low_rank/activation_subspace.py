"""Directions within the leading subspace of the activations of the batch, computed before every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import Block, Weight
from zolit.optim.modules.inputs import leading_subspace, watch_inputs
from zolit.optim.modules.layers import linear_modules
from zolit.optim.perturbation.factored import Factors
from zolit.optim.perturbation.gaussian_pool import GaussianPool
from zolit.optim.perturbation.low_rank.pooled import Cut, PooledFactors
from zolit.optim.randomness import Generators, Step, fold_in, key_of

_START = key_of("power iterations")


class ActivationSubspace(PooledFactors):
    """Draws Δ = RAᵀ for linear layers, with R ~ N(0, 1) and A from the inputs of the layer (AGZO, arXiv 2601.17261).

    For Y = XWᵀ the rows of the gradient lie in the span of the rows of X. The leading subspace A of X therefore
    contains most of the gradient: E[⟨G, Δ⟩ Δ] = G AAᵀ. A is orthonormal, of shape (d, r). Before each step, one forward
    of the batch shows the activations X, and K power iterations find A. X is then dropped at once. Embeddings, norms,
    biases and tied output heads get dense directions. If the batch is split into micro-batches, only the first one
    counts. With several ranks, all ranks use the A of the first rank.

    Args:
        rank: r. In the ablation of the paper, rank 1 is better than 4 and 16.
        iterations: K, the number of power iterations.

    Raises:
        UserError: If the rank or the number of iterations is not positive.
    """

    factors_all_weights = False

    def __init__(self, rank: int = 1, iterations: int = 3) -> None:
        super().__init__(rank)
        require(iterations >= 1, f"iterations: at least one power iteration is needed, not {iterations}")
        self._iterations = iterations
        self._bases: dict[Weight, Tensor] = {}
        self._generators = Generators()
        self._dense = GaussianPool()

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Sets the chunk size, and binds the law of dense directions; see ``Stage.bind``."""
        super().bind(model, weights, blocks)
        self._dense.bind(model, weights, blocks)
        self._weights = {id(weight.parameter): weight for weight in weights}

    def prepare(self, base: BasePoint) -> None:
        """Finds A of each linear layer by one forward at θ; see ``Stage.prepare``."""
        modules = {
            name: module for name, module in linear_modules(base.model).items() if id(module.weight) in self._weights
        }
        found: dict[Weight, Tensor] = {}

        def on_input(name: str, rows: Tensor) -> None:
            weight = self._weights[id(modules[name].weight)]
            if weight in found or not len(rows):
                return
            width = rows.shape[1]
            generator = self._generators.seeded(fold_in(_START, base.step.index, weight.key), rows.device)
            start = torch.empty(width, min(self.rank, width), dtype=torch.float32, device=rows.device)
            found[weight] = leading_subspace(rows, start.normal_(generator=generator), self._iterations)

        with watch_inputs(base.model, modules, on_input):
            base.loss()
        if base.collectives.size > 1:
            found = self._of_first_rank([self._weights[id(module.weight)] for module in modules.values()], found, base)
        self._bases = found

    def _of_first_rank(
        self, weights: Sequence[Weight], own: dict[Weight, Tensor], base: BasePoint
    ) -> dict[Weight, Tensor]:
        """Returns A of the first rank. A rank may use other layers than the first, and must send as many numbers."""
        weights = [weight for weight in dict.fromkeys(weights) if not weight.parameter.is_meta]
        shapes = [(width, min(self.rank, width)) for width in (weight.parameter[0].numel() for weight in weights)]
        bases = [
            own.get(weight, torch.zeros(shape, dtype=torch.float32, device=weight.parameter.device))
            for weight, shape in zip(weights, shapes, strict=True)
        ]
        if not bases:
            return {}
        packed = base.collectives.broadcast(torch.cat([basis.flatten() for basis in bases]))
        parts = torch.split(packed, [basis.numel() for basis in bases])
        used = torch.stack([part.any() for part in parts]).tolist()
        return {
            weight: part.view(shape)
            for weight, part, shape, has in zip(weights, parts, shapes, used, strict=True)
            if has
        }

    def begin_step(self, step: Step) -> None:
        """Begins a step of both laws; see ``Perturbation.begin_step``."""
        super().begin_step(step)
        self._dense.begin_step(step)

    def factors(self, weight: Weight, keys: Sequence[int]) -> Factors | None:
        """Returns R and A; None for a weight without A. See ``FactoredPerturbation.factors``."""
        return self._factors(weight, keys) if weight in self._bases else None

    def _make_factors(self, weight: Weight, keys: Sequence[int], cut: Cut) -> Factors:
        factors, basis = super()._make_factors(weight, keys, cut), self._bases[weight]
        inputs = basis.t().to(factors.inputs.dtype).expand(len(keys), -1, -1)
        rank = inputs.shape[1]
        return Factors(factors.outputs[:, :rank], inputs, factors.scales[:, :rank].sign())

    def draw(
        self, weight: Weight, key: int, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Multiplies R and A, or draws densely for a weight without A; see ``Perturbation.draw``."""
        if weight not in self._bases:
            return self._dense.draw(weight, key, start, stop, dtype)
        return super().draw(weight, key, start, stop, dtype)

    def scratch_bytes(self) -> int:
        """Returns the bytes of pools, buffers and A; see ``Stage.scratch_bytes``."""
        held = sum(basis.nbytes for basis in self._bases.values())
        return super().scratch_bytes() + self._dense.scratch_bytes() + held
