"""Low-rank directions whose input side lies in the span of the activations of one example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from zolit.optim.blocks import Block, Weight
from zolit.optim.collectives import Collectives
from zolit.optim.perturbation.low_rank.pooled import Cut, PooledFactors, draws_of, offsets, windows
from zolit.optim.perturbation.low_rank.span import Span, SpanInputs
from zolit.optim.randomness import Step, key_of

_TOKENS = key_of("tokens")
_EMBEDDING_SCALE = 0.3
"""Factor of directions over matrices in which rows are looked up."""


class ActivationGuided(PooledFactors):
    """Draws U = r^(-1/2) Σⱼ aⱼbⱼᵀ, with each bⱼ in the span of the activations of one example at the layer.

    The gradient of y = x Wᵀ for one example is G = Σₜ (∂L/∂yₜ) xₜᵀ. Its rows lie in the span of the T tokens of the
    example at this layer. A dense direction has only a small part in this span (AGZO, arXiv 2601.17261, uses the
    leading directions of a batch). X has the rows xₜ/‖xₜ‖. Let b = Xᵀ L⁻ᵀ ρ, where L Lᵀ = X Xᵀ + λI and ρ is uniform on
    the sphere of radius √T. Then E[b bᵀ] = Xᵀ (X Xᵀ + λI)⁻¹ X, which for small λ is the projection onto the span. So
    E[Δ U] = G as for ``LowRank``, but the variance is T/(d + 2) of that of ``LowRank``. λ limits the weight of tokens
    that are almost a combination of other tokens. The estimate of this part of the gradient is too small.

    The activations are those of the first forward of a step that uses the weight. ρ depends on the position of a token
    after the padding, so padding changes nothing. ρ takes the place of b in the second half of the pool, so no ρ shares
    a number with an a.

    A vector has no input side, and neither does a matrix in which rows are looked up. Both get the law of ``LowRank``,
    multiplied by 0.3 for such a matrix. An update moves all rows of the matrix, although only a few rows caused the
    change of the loss. At full length this would be most of the noise. A matrix that the forward of an example does not
    use, such as an expert, does not move along the direction of this example.

    Args:
        rank: r.
    """

    needs_examples = True

    def __init__(self, rank: int = 1) -> None:
        super().__init__(rank)
        self._span_inputs: dict[Weight, SpanInputs] = {}
        self._offsets: dict[tuple[Weight, tuple[int, ...]], Tensor] = {}
        self._embeddings: set[Weight] = set()
        self._span: Span | None = None

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Finds the embeddings, the same ones on all ranks; see ``Stage.bind``."""
        super().bind(model, weights, blocks)
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        self._embeddings = {weight for weight in weights if id(weight.parameter) in tables}

    def begin_step(self, step: Step) -> None:
        """Drops the activations of the last step; see ``Perturbation.begin_step``."""
        super().begin_step(step)
        self._span_inputs.clear()
        self._offsets.clear()
        self._span = None

    def prefetch(self, keys: Mapping[Weight, Sequence[int]]) -> None:
        """Hashes the offsets of factors and of ρ in the pool; see ``FactoredPerturbation.prefetch``."""
        super().prefetch(keys)
        by_device: dict[torch.device, list[Weight]] = {}
        for weight in keys:
            by_device.setdefault(weight.parameter.device, []).append(weight)
        for weights in by_device.values():
            _, half = self._pools.of(weights[0]).halves  # a is of the first half
            begins = offsets(draws_of([keys[weight] for weight in weights], self.rank, _TOKENS), half)
            self._offsets.update(zip([(weight, tuple(keys[weight])) for weight in weights], begins, strict=True))

    def see_inputs(self, weight: Weight, keys: Sequence[int], inputs: Tensor | None, positions: Tensor | None) -> None:
        """Computes b of examples whose b is not yet known; see ``FactoredPerturbation.see_inputs``."""
        if inputs is None:
            self._embeddings.add(weight)
        elif self._span is not None and not self._span.is_of(inputs):
            self._span = None
        known = self._span_inputs.get(weight)
        if weight in self._embeddings or (known is not None and known.include(keys)):
            return
        assert inputs is not None
        rows = self._combined(weight, keys, inputs, positions)
        if len(set(keys)) < len(keys):  # rows with the same key get the direction of the first of them
            first = SpanInputs(tuple(keys), rows)
            keys = tuple(dict.fromkeys(keys))
            rows = first.of(keys)
        new = SpanInputs(tuple(keys), rows)
        self._span_inputs[weight] = new if known is None else known.joined(new)

    def _combined(self, weight: Weight, keys: Sequence[int], inputs: Tensor, positions: Tensor | None) -> Tensor:
        """Returns b of each example, shape (examples, r, d), of the type of the weight."""
        _, half = self._pools.of(weight).halves
        name = (weight, tuple(keys))
        if name not in self._offsets:
            self.prefetch({weight: keys})
        coefficients = windows(half, self._offsets[name], inputs.shape[1]).view(len(keys), self.rank, -1)
        if positions is not None:
            at = positions.unsqueeze(1)
            coefficients = coefficients.gather(2, at.clamp(min=0).expand_as(coefficients)) * (at >= 0)
        if self._span is None:
            self._span = Span.of(inputs, positions)
        return self._span.combine(coefficients).to(weight.parameter.dtype)

    def gather_examples(
        self, own: Mapping[Weight, Sequence[int]], every: Mapping[Weight, Sequence[int]], collectives: Collectives
    ) -> None:
        """Gathers b of the examples of all ranks, in one message; see ``FactoredPerturbation.gather_examples``."""
        # The same weights on all ranks, also if the forwards of a rank do not use one of them.
        guided = [weight for weight in own if weight.parameter.ndim > 1 and weight not in self._embeddings]
        if not guided:
            return
        inputs = [self._guided(weight, own[weight]).float().flatten(1) for weight in guided]
        gathered = collectives.all_gather(torch.cat(inputs, dim=1).t()).t()
        parts = torch.split(gathered, [rows.shape[1] for rows in inputs], dim=1)
        for weight, part in zip(guided, parts, strict=True):
            rows = part.to(weight.parameter.dtype).view(len(part), self.rank, -1)
            self._span_inputs[weight] = SpanInputs(tuple(every[weight]), rows)
        self._known.clear()

    def _input_factors(self, weight: Weight, keys: Sequence[int], cut: Cut) -> Tensor:
        if weight in self._embeddings:
            return super()._input_factors(weight, keys, cut).mul_(_EMBEDDING_SCALE)
        return self._guided(weight, keys).flatten(0, 1)

    def _guided(self, weight: Weight, keys: Sequence[int]) -> Tensor:
        """Returns b of each example, shape (examples, r, d); zeros for examples that have not used the weight."""
        known = self._span_inputs.get(weight)
        theta = weight.parameter
        return known.of(keys) if known is not None else theta.new_zeros(len(keys), self.rank, theta[0].numel())

    def scratch_bytes(self) -> int:
        """Returns the bytes of pools, buffers, b and the latest span; see ``Stage.scratch_bytes``."""
        guided = {weight for weight, _ in self._known} & self._span_inputs.keys()
        # The kept factors of these weights contain b, which is counted separately.
        counted = sum(self._known[name].inputs.nbytes for name in self._known if name[0] in guided)
        held = sum(known.rows.nbytes for known in self._span_inputs.values())
        return super().scratch_bytes() - counted + held + (self._span.bytes() if self._span else 0)
