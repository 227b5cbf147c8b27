"""Directions over coefficients whose basis is found once, from the first batch's activations."""

from __future__ import annotations

import torch
from torch import Tensor

from zolit.adapters import adapted
from zolit.closure import Look
from zolit.errors import require
from zolit.hashing import mix, name_key
from zolit.perturbation.gaussian import Gaussian
from zolit.perturbation.watching import leading_inputs, watching

_START = name_key("one-shot basis")


class OneShotBasis(Gaussian):
    """z ~ N(0, I) over the coefficients C of layers y = f(x) + (x Vᵀ) Cᵀ (ZO-Act, arXiv 2607.01125).

    Before the first step one look at the batch gives every layer its V: about the leading right singular vectors of
    what comes into it, by power iterations, of the first rank's batch. V stays; it is the model's own and is saved
    with it. In terms of the layer's weight E[⟨G, Δ⟩ Δ] = G VᵀV.

    Args:
        iterations: Power iterations.

    Raises:
        UserError: If there is none.
    """

    def __init__(self, iterations: int = 8) -> None:
        super().__init__()
        require(iterations >= 1, f"iterations: at least one power iteration is needed, not {iterations}")
        self._iterations = iterations

    def prepare(self, look: Look) -> None:
        """Finds the bases of layers that have none yet; see the base class."""
        bases: dict[str, Tensor] = {name: module.zo_basis for name, module in adapted(look.model).items()}
        if any(bool(basis.any()) for basis in bases.values()):
            return
        found: dict[str, Tensor] = {}

        def see(name: str, rows: Tensor) -> None:
            rank, width = bases[name].shape
            generator = self._generators.seeded(mix(_START, name_key(name)), rows.device)
            start = torch.empty(width, rank, dtype=torch.float32, device=rows.device).normal_(generator=generator)
            found[name] = leading_inputs(rows, start, self._iterations).t()

        with watching(look.model, {name: look.model.get_submodule(name) for name in bases}, see):
            look()
        for name, basis in found.items():
            bases[name].copy_(look.ranks.first(basis.contiguous()))
