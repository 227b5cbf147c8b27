"""Perturbs one layer only: the first layer with massive activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import Block, BlockSample, Weight
from zolit.optim.modules.calls import ModelCalls
from zolit.optim.modules.layers import find_layers
from zolit.optim.perturbation.directions import Directions
from zolit.optim.randomness import Step
from zolit.optim.report import SelectionReport
from zolit.optim.selection.all_blocks import AllBlocks
from zolit.optim.selection.base import Selection


class OneLayer(Selection):
    """Samples blocks of one layer only: the first layer whose output has massive activations.

    Dominant-Layer ZO (arXiv 2606.05516) finds the layer by one inference pass: the layer where activation outliers
    first appear. The threshold of the paper was not recovered. The default is that of Sun et al. (arXiv 2402.17762):
    |h| above 100 and above 1,000 times the median. If no layer exceeds the threshold, the layer is chosen at which the
    largest activation grows most. Layers are the members of the largest ``nn.ModuleList`` of the model. With several
    ranks, the result of the first rank counts.

    Args:
        layer: Index of the layer, from 0; None finds the layer before the first step, by one forward pass.
        magnitude: Smallest |h| of a massive activation.
        ratio: Smallest |h| of a massive activation, in multiples of the median.
        within: Selection among the blocks of the layer; None is all of them.

    Raises:
        UserError: If the index is negative, or if the inner selection needs the blocks of the whole model.
    """

    nests = False

    def __init__(
        self,
        layer: int | None = None,
        magnitude: float = 100.0,
        ratio: float = 1000.0,
        within: Selection | None = None,
    ) -> None:
        require(layer is None or layer >= 0, f"layer: the index of the layer must be at least 0, not {layer}")
        self._layer = layer
        self._magnitude = magnitude
        self._ratio = ratio
        self._within = within or AllBlocks()
        require(
            self._within.nests,
            f"within: {type(self._within).__name__} chooses among the blocks of the whole model; use another selection",
        )
        self.masks = self._within.masks
        self._inside: list[int] = []

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Stores the blocks, and restricts the inner selection to the layer if it is known; see ``Stage.bind``.

        Raises:
            UserError: If the model has no layers, or if no block lies within the layer.
        """
        super().bind(model, weights, blocks)
        self._model = model
        self._inside = []
        self._layers_name, self._layers = find_layers(model)
        require(
            bool(self._layers), "selection: the model has no nn.ModuleList of layers to choose from; use another method"
        )
        if self._layer is not None:
            self._restrict_to(f"{self._layers_name}.{self._layer}.", self._layer)
        within = any(self._blocks_within(f"{self._layers_name}."))
        require(
            within,
            "selection: no layer has a block of trainable weights; tune weights of layers, or set blocks: tensor",
        )

    def prepare(self, base: BasePoint) -> None:
        """Finds the layer before the first step, and prepares the inner selection; see ``Stage.prepare``."""
        if not self._inside:
            layer = self._dominant(base)
            self._restrict_to(f"{self._layers_name}.{layer}.", layer)
        self._within.prepare(base)

    def _restrict_to(self, prefix: str, layer: int) -> None:
        """Binds the inner selection to the blocks of a layer, whose names of weights begin with the prefix."""
        inside = self._blocks_within(prefix)
        require(
            any(inside),
            f"layer: no block lies within layer {layer} ({prefix}*): make its weights trainable, or set blocks: tensor",
        )
        self._layer, self._prefix = layer, prefix
        self._inside = [index for index, is_inside in enumerate(inside) if is_inside]
        blocks = [self.blocks[index] for index in self._inside]
        self._within.bind(self._model, [weight for block in blocks for weight in block.weights], blocks)

    def _blocks_within(self, prefix: str) -> list[bool]:
        return [all(weight.name.startswith(prefix) for weight in block.weights) for block in self.blocks]

    def _dominant(self, base: BasePoint) -> int:
        """Makes a forward pass and returns the index of the dominant layer."""
        sizes = [torch.zeros(2, dtype=torch.float32)] * len(self._layers)
        calls = ModelCalls(base.model)

        def watch(index: int) -> Any:
            def on_output(_: nn.Module, __: Any, output: Any) -> None:
                states = (output[0] if isinstance(output, tuple) else output).detach()
                if not states.numel():  # the batch of a rank may be empty
                    return
                hidden, kept = states.float().abs(), calls.kept(states)
                padding = torch.zeros((), dtype=torch.bool) if kept is None else ~kept.unsqueeze(-1)
                largest = hidden.masked_fill(padding, 0.0).max()
                both = torch.stack([largest, hidden.masked_fill(padding, math.nan).nanmedian()])
                sizes[index] = torch.maximum(sizes[index].to(both), both)

            return on_output

        with calls.followed(), ExitStack() as hooks:
            for index, layer in enumerate(self._layers):
                hooks.callback(layer.register_forward_hook(watch(index)).remove)
            base.loss()
        own = _first_massive(torch.stack(sizes), self._magnitude, self._ratio)
        return int(base.collectives.broadcast(torch.tensor([own])))

    def select(self, step: Step) -> BlockSample:
        """Samples blocks of the layer; see ``Selection.select``."""
        count = len(self.blocks)
        chosen, probabilities = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.float64)
        if not self._inside:  # the loss in prepare was not finite, and the step will be skipped
            return BlockSample(self.blocks, chosen, probabilities, torch.ones(count, dtype=torch.float64))
        self._inner = self._within.select(step)
        corrections = torch.ones(count, dtype=torch.float64)
        chosen[self._inside] = self._inner.chosen
        probabilities[self._inside] = self._inner.probabilities
        corrections[self._inside] = self._inner.corrections
        return BlockSample(
            self.blocks, chosen, probabilities, corrections, self._inner.needs_squared_norms, self._inner.mask
        )

    def observe(
        self, sample: BlockSample, directions: Directions, derivatives: Sequence[float], squared_norms: Tensor
    ) -> None:
        """Lets the inner selection learn; see ``Selection.observe``."""
        inner = squared_norms[:, self._inside] if sample.needs_squared_norms else squared_norms
        self._within.observe(self._inner, directions, derivatives, inner)

    def report(self, sample: BlockSample) -> SelectionReport:
        """Describes the sample. Units, budget and scores are those of the inner selection; see ``Selection.report``."""
        if not self._inside:
            return self._report(sample, budget=0.0, perturbed_parameters=0)
        inner = self._within.report(self._inner)
        scores = None
        if inner.scores is not None:
            scores = torch.zeros(len(self.blocks), dtype=torch.float64)
            scores[self._inside] = inner.scores
        return self._report(
            sample,
            scores=scores,
            units=inner.units,
            budget=inner.budget,
            clipped=inner.clipped,
            perturbed_parameters=inner.perturbed_parameters,
            effective_support=inner.effective_support,
            normalized_entropy=inner.normalized_entropy,
        )

    def scratch_bytes(self) -> int:
        """Returns the bytes of the inner selection; see ``Stage.scratch_bytes``."""
        return self._within.scratch_bytes()

    def state_dict(self) -> dict[str, Any]:
        """Returns the layer and the state of the inner selection; see ``Stage.state_dict``."""
        if not self._inside:
            return {"layer": None}
        return {"layer": self._layer, "prefix": self._prefix, "within": self._within.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the layer and the inner selection; see ``Stage.load_state_dict``."""
        self._inside = []
        if state["layer"] is not None:
            self._restrict_to(state["prefix"], state["layer"])
            self._within.load_state_dict(state["within"])


def _first_massive(sizes: Tensor, magnitude: float, ratio: float) -> int:
    """Returns the index of the first layer with a massive activation, else of the layer with the largest growth.

    Args:
        sizes: Largest and median |h| of the output of each layer, shape (layers, 2).
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
