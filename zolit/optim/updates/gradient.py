"""The gradient estimate Σ aᵢûᵢ. It is drawn again piece by piece, while the update adds it to the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zolit.optim.blocks import Weight
from zolit.optim.collectives import Collectives
from zolit.optim.perturbation.directions import Directions


class Gradient:
    """The estimate ĝ = Σ aᵢûᵢ over the sampled blocks, with û = u times the corrections of the sample.

    The optimizer makes one object for each step that is not skipped.

    Args:
        directions: u_1 ... u_k.
        coefficients: a, shape (k,).
        collectives: The collectives of the run.

    Attributes:
        directions: u_1 ... u_k.
    """

    def __init__(self, directions: Directions, coefficients: Sequence[float], collectives: Collectives) -> None:
        sample = directions.sample
        self.directions = directions
        self._coefficients = coefficients
        self._collectives = collectives
        self._mask = sample.mask
        self._corrections = sample.corrections.tolist()
        self._measures = sample.needs_squared_norms
        chosen = [(index, sample.blocks[index]) for index in sample.chosen.nonzero().view(-1).tolist()]
        self._block_of = {weight: index for index, block in chosen for weight in block.weights}
        devices = (weight.parameter.device for block in sample.blocks for weight in block.weights)
        self._device = next(device for device in devices if device.type != "meta")
        shape = (directions.count, len(sample.blocks))
        self._on_device = torch.zeros(shape if self._measures else (0, 0), dtype=torch.float32, device=self._device)
        self._on_host = [[0.0] * shape[1] for _ in range(shape[0] if self._measures else 0)]
        self._scaled: dict[tuple[torch.device, float], Tensor] = {}

    def add_to(self, piece: Tensor, weight: Weight, start: int, stop: int, scale: float = 1.0) -> None:
        """Adds scale·ĝ to a piece, and measures ‖u‖² if the sample needs it.

        Called by the update, once a step for each piece of each weight. A weight outside of the sample has ĝ = 0.

        Args:
            piece: Shape (stop - start,), float32 or wider.
            weight: Any trainable weight.
            start: Index of the first element; (start, stop) is one of ``directions.chunks(weight)``.
            stop: Index after the last element.
            scale: A factor, such as minus the learning rate.
        """
        block = self._block_of.get(weight)
        if block is None:
            return
        measures = self._measures and self._collectives.owns(weight)
        factors = self.directions.factors(weight)
        if factors is not None:
            if measures and start == 0:
                self._on_device[:, block] += factors.squared_norms()
            factors.add_to(piece, start, stop, self._scaled_on(piece.device, scale), self._corrections[block])
            return
        # A CPU converts numbers of 16 bits slowly. A GPU adds them without a conversion.
        dtype = torch.float32 if piece.device.type == "cpu" else weight.parameter.dtype
        for direction, coefficient in enumerate(self._coefficients):
            u, factor = self.directions.draw(direction, weight, start, stop, dtype)
            if measures:
                self._measure(direction, weight, start, stop, block, u, factor)
            if self._mask is not None:
                u = u * self._mask.correction(weight, start, stop)
            piece.add_(u, alpha=scale * coefficient * factor * self._corrections[block])

    def _measure(
        self, direction: int, weight: Weight, start: int, stop: int, block: int, u: Tensor, factor: float
    ) -> None:
        known = self.directions.squared_norm(direction, weight, start, stop)
        if known is None:
            self._on_device[direction, block] += factor**2 * torch.dot(u.float(), u.float()).to(self._device)
        else:
            self._on_host[direction][block] += known

    def _scaled_on(self, device: torch.device, scale: float) -> Tensor:
        """Returns scale·a on a device, shape (k,), float32, sent once for each scale and without a wait of the host."""
        sent = self._scaled.get((device, scale))
        if sent is None:
            scaled = [scale * coefficient for coefficient in self._coefficients]
            sent = torch.tensor(scaled, dtype=torch.float32).to(device, non_blocking=True)
            self._scaled[device, scale] = sent
        return sent

    def squared_norms(self) -> Tensor:
        """Returns ‖u_b‖² of every direction over every block, summed over ranks that split the weights.

        Called once a step by the optimizer, after the update. The host waits for the GPU here.

        Returns:
            Shape (k, n), float64, on the CPU. Shape (0, 0) if the sample does not need them.
        """
        norms = self._on_device.cpu().double()
        if not self._measures:
            return norms
        norms += torch.tensor(self._on_host, dtype=torch.float64)
        if self._collectives.weights_are_split:
            norms = self._collectives.all_sum(norms.to(self._device)).cpu()
        return norms
