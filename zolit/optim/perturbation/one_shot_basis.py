"""Directions over coefficients whose basis is computed once, from the activations of the first batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.base_point import BasePoint
from zolit.optim.blocks import Block, Weight
from zolit.optim.modules.adapters import adapted_modules
from zolit.optim.modules.inputs import leading_subspace, watch_inputs
from zolit.optim.perturbation.gaussian import Gaussian
from zolit.optim.randomness import fold_in, key_of

_START = key_of("one-shot basis")


class OneShotBasis(Gaussian):
    """Draws z ~ N(0, I) over the coefficients C of layers y = f(x) + (x Vᵀ) Cᵀ (ZO-Act, arXiv 2607.01125).

    Before the first step, one forward of the batch determines the V of every layer. V approximates the leading right
    singular vectors of the inputs of the layer, by power iterations. With several ranks, the batch of the first rank
    counts. V then stays constant. It belongs to the model and is saved with it. For the weight of the layer,
    E[⟨G, Δ⟩ Δ] = G VᵀV.

    Args:
        iterations: Number of power iterations.

    Raises:
        UserError: If the number of iterations is not positive.
    """

    def __init__(self, iterations: int = 8) -> None:
        super().__init__()
        require(iterations >= 1, f"iterations: at least one power iteration is needed, not {iterations}")
        self._iterations = iterations
        self._has_bases = False

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Sets the chunk size, and looks for the layers with coefficients; see ``Stage.bind``.

        Raises:
            UserError: If the model has no coefficients.
        """
        super().bind(model, weights, blocks)
        require(
            bool(adapted_modules(model)),
            "perturbation: OneShotBasis draws over coefficients that this model does not have; use the method "
            "zolit.ZOAct, which adds them",
        )

    def prepare(self, base: BasePoint) -> None:
        """Finds the bases before the first step, by one forward; see ``Stage.prepare``."""
        if self._has_bases:  # known to the host, which would wait for the bases themselves
            return
        bases: dict[str, Tensor] = {name: module.zo_basis for name, module in adapted_modules(base.model).items()}
        self._has_bases = any(bool(basis.any()) for basis in bases.values())
        if self._has_bases:
            return
        found: dict[str, Tensor] = {}

        def on_input(name: str, rows: Tensor) -> None:
            rank, width = bases[name].shape
            generator = self._generators.seeded(fold_in(_START, key_of(name)), rows.device)
            start = torch.empty(width, rank, dtype=torch.float32, device=rows.device).normal_(generator=generator)
            found[name] = leading_subspace(rows, start, self._iterations).t()

        with watch_inputs(base.model, {name: base.model.get_submodule(name) for name in bases}, on_input):
            base.loss()
        for name, basis in bases.items():  # all of them: another rank may use other layers
            basis.copy_(base.collectives.broadcast(found.get(name, torch.zeros_like(basis)).contiguous()))
