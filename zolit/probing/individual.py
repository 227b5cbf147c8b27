"""Probing in which every example of a batch meets a direction of its own, in one forward of them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zolit.blocks import Weight
from zolit.closure import Closure
from zolit.directions import Directions
from zolit.errors import require
from zolit.probing.apart import ExampleProbe, ExampleView
from zolit.probing.base import Prober
from zolit.probing.views import find_places, hidden, placed


class Individual(Prober):
    """Example i of the batch sees θ + c·uᵢ; directions are of low rank and are applied to its activations.

    y = x Wᵀ + c (x·bᵢ) aᵢ: the product with W is the plain one, θ is never written, and what comes on top are two thin
    products. Forwards give a loss for every example, and so two of them a derivative along every direction.

    Examples must lie along the first dimension of whatever meets a perturbed weight, in the order of the losses; a
    model may be called several times, for one micro-batch after another. Rows of one name are one example's: they see
    one direction, and each has the example's loss. Flattened with their tokens, example after
    example, they are still told apart. Modules that flatten otherwise, route tokens or have weights meet what is not
    listed in ``zolit.probing.apart`` are refused. The first step that perturbs a weight checks, by one forward more,
    that no example's loss depends on another's direction, and that no weight is looked for elsewhere than in modules'
    attributes.
    """

    def __init__(self) -> None:
        self._trusted: set[Weight] = set()

    def bind(self, model: nn.Module, weights: Sequence[Weight]) -> None:
        """Finds the attributes under which modules look for weights; see the base class."""
        self._model = model
        self._places = find_places(model, weights)

    def losses(self, closure: Closure, directions: Directions, queries: Tensor) -> Tensor:
        """Evaluates the queries.

        Args:
            closure: Returns the loss of each example, shape (batch,).
            directions: One for each example. Where none are named yet, the examples' places in the batch name them.
            queries: c, shape (queries, 1), on the CPU.

        Returns:
            Shape (queries, batch), float32 or wider.

        Raises:
            UserError: If the model or the closure does not keep the examples apart.
        """
        probe = ExampleProbe(directions)
        coefficients: list[float] = queries[:, 0].tolist()
        handle = self._model.register_forward_pre_hook(probe.enter, with_kwargs=True)
        try:
            with placed([ExampleView.of(weight, probe) for weight in directions.weights], self._places):
                new = [weight for weight in directions.weights if weight not in self._trusted]
                with hidden(new):
                    losses = torch.stack([probe.forward(closure, coefficient) for coefficient in coefficients])
                return self._checked(closure, probe, coefficients, losses, new) if new else losses
        finally:
            handle.remove()

    def _checked(
        self, closure: Closure, probe: ExampleProbe, queries: list[float], losses: Tensor, weights: Sequence[Weight]
    ) -> Tensor:
        """Finds out whether somebody looked for θ, which was hidden, and whether examples can be told apart.

        Examples meet the first query and the last in turn, in one forward; their losses must be what they were.
        """
        first, last, names = losses[0], losses[-1], probe.directions.names
        order = {name: place for place, name in enumerate(dict.fromkeys(names))}
        even = torch.tensor([order[name] % 2 == 0 for name in names], device=first.device)
        # float32, as a plain number times float32 is: what 16 bits are rounded to must not differ.
        ends = torch.tensor([queries[0], queries[-1]], dtype=torch.float32, device=first.device)
        mixed = probe.forward(closure, torch.where(even, ends[0], ends[1]))
        if not losses.isfinite().all():
            escaped = False
            if mixed.isfinite().all():  # θ is no longer hidden; or else one forward alone went wrong, and once
                with hidden(weights):
                    escaped = not probe.forward(closure, queries[0]).isfinite().all()
            require(
                not escaped,
                "probing: the model holds weights elsewhere than in its modules' attributes, where directions of "
                "single examples cannot reach them; take another method",
            )
            return losses
        limit = 1e-3 * (first - last).abs().max() + 1e-5 * first.abs().max()
        require(
            bool(((mixed - torch.where(even, first, last)).abs() <= limit).all()),
            "probing: an example's loss depends on the directions of others, or is another each time: the model mixes "
            "the examples of a batch, or the closure is not deterministic; take another method, or mend the closure",
        )
        self._trusted.update(weights)
        return losses

    def scratch_bytes(self) -> int:
        """Returns 0: what is held are activations."""
        return 0
