"""The prober that gives each example of a batch a separate direction, in one forward of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zolit.errors import UserError, require
from zolit.optim.base_point import Closure
from zolit.optim.blocks import Block, Weight
from zolit.optim.perturbation.directions import Directions
from zolit.optim.probing.base import Prober
from zolit.optim.probing.per_example.probe import PerExampleProbe
from zolit.optim.probing.per_example.weight import PerExampleWeight
from zolit.optim.probing.views import find_sites, installed, poisoned


class PerExampleProber(Prober):
    """Evaluates example i of the batch at θ + c·uᵢ. Directions have low rank and enter the products with activations.

    y = x Wᵀ + c (x·bᵢ) aᵢ. The product with W is the usual one, and two thin products are added to it. θ is never
    written. A forward gives one loss for each example, so two forwards give the derivative along every direction.

    The examples must be along the first dimension of all activations that meet a perturbed weight, in the order of the
    losses. The closure may call the model several times, once for each micro-batch. Rows with the same id share a
    direction, and each row has a separate loss. Activations may be flattened with their tokens, example after example.
    A module is refused if it flattens activations in another way, if it routes tokens, or if it uses a weight in a
    function that is not in ``zolit.optim.probing.per_example.products``.

    The first step that perturbs a weight makes one additional forward. This forward checks that no loss depends on the
    direction of another example. The step also checks that the model reads weights only through attributes of modules.
    """

    per_example = True
    rounds_weights = False  # x·Wᵀ and the product with the perturbation are added as results

    def __init__(self) -> None:
        self._verified: set[Weight] = set()

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Finds the attributes in which modules hold weights; see ``Stage.bind``."""
        self._model = model
        self._sites = find_sites(model, weights)

    def losses(self, closure: Closure, directions: Directions, queries: Tensor, repeats_batch: bool = False) -> Tensor:
        """Computes the loss of each example at each query; see ``Prober.losses``.

        Args:
            closure: Returns the loss of each example, shape (batch,).
            directions: One direction for each example. Without ids, the positions in the batch are the ids.
            queries: c, shape (queries, 1), on the CPU.
            repeats_batch: Ignored.

        Returns:
            Shape (queries, batch), float32 or wider.

        Raises:
            UserError: If the model or the closure mixes examples, or if the model cannot be perturbed for each example.
        """
        new = [weight for weight in directions.weights if weight not in self._verified]
        try:
            return self._measured(closure, directions, queries[:, 0].tolist(), new)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if not new:
                raise
            closure()  # raises the exception again if it is the closure's own
            reason = f"{type(error).__name__} where a weight differs from example to example"
            msg = f"probing: the model raises {reason}; freeze the weight, or take another method"
            raise UserError(msg) from error

    def _measured(
        self, closure: Closure, directions: Directions, queries: list[float], new: Sequence[Weight]
    ) -> Tensor:
        """Makes a forward for each query, and checks the weights that are perturbed for the first time."""
        probe = PerExampleProbe(self._model, directions)
        views = [PerExampleWeight.of(weight, probe) for weight in directions.weights]
        with probe.calls.followed(), installed(views, self._sites):
            with poisoned(new):
                losses = torch.stack([probe.forward(closure, query) for query in queries])
            return self._checked(closure, probe, queries, losses, new) if new else losses

    def _checked(
        self, closure: Closure, probe: PerExampleProbe, queries: list[float], losses: Tensor, weights: Sequence[Weight]
    ) -> Tensor:
        """Checks that the model did not read θ, which was NaN, and that no loss depends on another direction.

        In one additional forward, the examples get the first and the last query in turn. Their losses must not change.
        """
        first, last, ids = losses[0], losses[-1], probe.directions.ids
        order = {id_: index for index, id_ in enumerate(dict.fromkeys(ids))}
        even = torch.tensor([order[id_] % 2 == 0 for id_ in ids], device=first.device)
        # float32, as for a plain number in the other forwards, so that 16-bit values are rounded in the same way.
        ends = torch.tensor([queries[0], queries[-1]], dtype=torch.float32, device=first.device)
        alternating = probe.forward(closure, torch.where(even, ends[0], ends[1]))
        if not losses.isfinite().all():
            escaped = False
            if alternating.isfinite().all():  # θ did not read as NaN: repeat a forward with NaN, to find the cause
                with poisoned(weights):
                    escaped = not probe.forward(closure, queries[0]).isfinite().all()
            require(
                not escaped,
                "probing: the model holds weights elsewhere than in its modules' attributes, so directions of single "
                "examples cannot be applied; take another method",
            )
            return losses
        limit = 1e-3 * (first - last).abs().max() + 1e-5 * first.abs().max()
        require(
            bool(((alternating - torch.where(even, first, last)).abs() <= limit).all()),
            "probing: an example's loss depends on the directions of others, or changes from call to call: the model "
            "mixes the examples of a batch, or the closure is not deterministic; correct it, or take another method",
        )
        self._verified.update(weights)
        return losses
