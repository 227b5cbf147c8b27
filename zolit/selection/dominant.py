"""One layer moves, found by looking for where activations become massive."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from zolit.blocks import Block
from zolit.choice import Choice
from zolit.closure import Look
from zolit.directions import Directions
from zolit.errors import require
from zolit.layers import stack_of
from zolit.report import SelectionReport
from zolit.selection.base import Selection
from zolit.selection.everything import Everything


class OneLayer(Selection):
    """Only the blocks of one layer move: the first whose output has massive activations.

    Dominant-Layer ZO (arXiv 2606.05516) finds the layer by one inference pass, as that where activation outliers first
    appear. Its threshold was not recovered; the default is that of Sun et al. (arXiv 2402.17762): |h| above 100 and
    above 1,000 times the median. Where no layer passes, the layer counts that makes the largest activation grow most.
    Layers are the members of the model's largest ``nn.ModuleList``. Of several ranks the first one's answer counts.

    Args:
        layer: The layer's place from 0; None looks for it before the first step, at the price of a forward.
        magnitude: Least size of a massive activation.
        ratio: Least size in medians of |h|.
        within: Which of the layer's blocks; None is all of them.

    Raises:
        UserError: If the layer's place is negative.
    """

    def __init__(
        self,
        layer: int | None = None,
        magnitude: float = 100.0,
        ratio: float = 1000.0,
        within: Selection | None = None,
    ) -> None:
        require(layer is None or layer >= 0, f"layer: the layer's place must be at least 0, not {layer}")
        self._layer = layer
        self._magnitude = magnitude
        self._ratio = ratio
        self._within = within or Everything()
        self.masks = self._within.masks
        self._places: list[int] = []

    def bind(self, blocks: Sequence[Block], seed: int) -> None:
        """Takes all blocks; see the base class."""
        super().bind(blocks, seed)
        self._places = []

    def prepare(self, look: Look) -> None:
        """Looks for the layer before the first step; see the base class."""
        if not self._places:
            name, layers = stack_of(look.model)
            require(bool(layers), "selection: the model has no nn.ModuleList of layers, of which one could be dominant")
            layer = self._found(look, layers) if self._layer is None else self._layer
            self._take(f"{name}.{layer}.", layer)
        self._within.prepare(look)

    def _take(self, prefix: str, layer: int) -> None:
        """Has the blocks move whose weights all bear this prefix."""
        inside = [all(weight.name.startswith(prefix) for weight in block.weights) for block in self._blocks]
        require(
            any(inside),
            f"layer: no block lies within layer {layer} ({prefix}*): leave weights of it trainable, or have blocks "
            "of tensors",
        )
        self._layer, self._prefix = layer, prefix
        self._places = [place for place, is_inside in enumerate(inside) if is_inside]
        self._within.bind([self._blocks[place] for place in self._places], self._seed)

    def _found(self, look: Look, layers: Sequence[nn.Module]) -> int:
        """Makes a forward pass and returns the layer's place."""
        largest = [torch.zeros(2)] * len(layers)

        def watch(place: int) -> Any:
            def see(_: nn.Module, __: Any, output: Any) -> None:
                hidden = (output[0] if isinstance(output, tuple) else output).detach().float().abs().flatten()
                both = torch.stack([hidden.max(), hidden.median()])
                largest[place] = torch.maximum(largest[place].to(both), both)

            return see

        with ExitStack() as hooks:
            for place, layer in enumerate(layers):
                hooks.callback(layer.register_forward_hook(watch(place)).remove)
            look()
        found = look.ranks.first(torch.tensor([_first_massive(torch.stack(largest), self._magnitude, self._ratio)]))
        return int(found)

    def select(self, step: int) -> Choice:
        """Chooses within the layer."""
        count = len(self._blocks)
        chosen, rest = torch.zeros(count, dtype=torch.bool), torch.full((count,), 1e-12, dtype=torch.float64)
        if not self._places:  # the look was not finite, and nothing will move
            return Choice(chosen, rest, torch.ones(count, dtype=torch.float64))
        self._inner = self._within.select(step)
        corrections = torch.ones(count, dtype=torch.float64)
        chosen[self._places] = self._inner.chosen
        rest[self._places] = self._inner.probabilities
        corrections[self._places] = self._inner.corrections
        return Choice(chosen, rest, corrections, self._inner.measure_energies, self._inner.mask)

    def observe(self, choice: Choice, directions: Directions, derivatives: Sequence[float]) -> None:
        """Lets the inner selection learn."""
        self._within.observe(self._inner, directions.within(self._places), derivatives)

    def report(self, choice: Choice) -> SelectionReport:
        """Says what was chosen; numbers that the inner selection knows are those of the layer."""
        inner = self._within.report(self._inner) if self._places else None
        scores = None
        if inner is not None and inner.scores is not None:
            scores = torch.zeros(len(self._blocks), dtype=torch.float64)
            scores[self._places] = inner.scores
        return SelectionReport(
            names=self._names,
            sizes=self._sizes,
            probabilities=choice.probabilities,
            chosen=choice.chosen,
            scores=scores,
            units=inner.units if inner and inner.units != len(self._places) else len(self._blocks),
            budget=inner.budget if inner else 0.0,
            clipped=float((choice.probabilities >= 1.0).double().mean()),
            perturbed_parameters=inner.perturbed_parameters if inner else 0,
            effective_support=inner.effective_support if inner else None,
            normalized_entropy=inner.normalized_entropy if inner else None,
        )

    def scratch_bytes(self) -> int:
        """Returns the bytes of the inner selection."""
        return self._within.scratch_bytes()

    def state_dict(self) -> dict[str, Any]:
        """Returns the layer, and what the inner selection knows."""
        if not self._places:
            return {"layer": None}
        return {"layer": self._layer, "prefix": self._prefix, "within": self._within.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the layer that was found."""
        if state["layer"] is not None:
            self._take(state["prefix"], state["layer"])
            self._within.load_state_dict(state["within"])


def _first_massive(sizes: Tensor, magnitude: float, ratio: float) -> int:
    """Returns the first place with a massive activation, or that of the largest growth.

    Args:
        sizes: Largest and median |h| of every layer's output, shape (layers, 2).
        magnitude: See ``OneLayer``.
        ratio: See ``OneLayer``.
    """
    largest, median = sizes.unbind(1)
    massive = ((largest > magnitude) & (largest > ratio * median)).nonzero()
    if len(massive):
        return int(massive[0])
    if len(largest) == 1:
        return 0
    return 1 + int((largest[1:] / largest[:-1].clamp(min=1e-12)).argmax())
