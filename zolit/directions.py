"""The k directions of one step: drawn again whenever a room asks, so that none is ever stored.

A direction is u = m ⊙ z: z from the perturbation, m from the selection. What the weights move along is û = w ⊙ u, where
w are the selection's weights (1/π with the Horvitz-Thompson correction). Probing adds u and the update adds û; both
come from here, so that the weights move along what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from zolit.blocks import Block, Weight
from zolit.choice import Choice
from zolit.hashing import mix, mix_each
from zolit.perturbation.base import Perturbation
from zolit.perturbation.factors import Factors
from zolit.ranks import Ranks
from zolit.scratch import Scratch


class Directions:
    """Directions u_1 ... u_k over the chosen blocks of one step.

    A direction is named by an integer: its index, or, where every example of a batch has a direction of its own, what
    the example is called.

    Args:
        blocks: All n blocks, in the optimizer's order.
        choice: Which of them move, and with what weights.
        perturbation: The law of z.
        seed: Base seed of the run.
        step: Index of the step.
        count: The number k of directions, named 0 to k - 1.
        scratch: Where 16-bit weights are widened.
        ranks: The processes that train together.

    Attributes:
        names: What the directions are called, shape (k,).
        count: k.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        choice: Choice,
        perturbation: Perturbation,
        seed: int,
        step: int,
        count: int,
        scratch: Scratch | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._choice = choice
        self._blocks = len(blocks)
        self._perturbation = perturbation
        self._sent: tuple[Sequence[float], Tensor] = ((), torch.empty(0))
        self._seed = mix(seed, step)
        perturbation.begin(seed, step)
        self.rename(range(count))
        self._scratch = scratch or Scratch()
        self._ranks = ranks or Ranks()
        self._corrections = choice.corrections.tolist()
        self._block_of = {
            weight: index
            for index, chosen in enumerate(choice.chosen.tolist())
            if chosen
            for weight in blocks[index].weights
        }
        everywhere = (weight.parameter.device for block in blocks for weight in block.weights)
        self._device = next(device for device in everywhere if device.type != "meta")

    def rename(self, names: Sequence[int]) -> None:
        """Has there be these directions instead of those that were."""
        self.names = names
        self.count = len(names)
        self._keys: dict[Weight, list[int]] = {}
        self._energies: Tensor | None = None
        self._known = [[0.0] * self._blocks for _ in names]

    def exchange(self) -> None:
        """Has there be the directions of all ranks' examples instead of this rank's own."""
        ranks = self._ranks
        if ranks.size == 1:
            return
        names = ranks.gather(torch.tensor(self.names, device=self._device)).tolist()
        own = {weight: self.keys(weight) for weight in self.weights}
        self.rename(names)
        self._perturbation.exchange(own, {weight: self.keys(weight) for weight in self.weights}, ranks)

    @property
    def weights(self) -> list[Weight]:
        """The weights of the chosen blocks."""
        return list(self._block_of)

    @property
    def energies(self) -> Tensor:
        """‖u_b‖² of every direction over every block, shape (k, n), float64, on the CPU, as the update saw them."""
        return self._measured.cpu().double() + torch.tensor(self._known, dtype=torch.float64)

    def add_up(self) -> None:
        """Makes energies that ranks with a part of the weights each have measured those of all."""
        if self._ranks.split and self._choice.measure_energies:
            self._energies = self._ranks.total(self.energies.to(self._device))
            self._known = [[0.0] * self._blocks for _ in self.names]

    def within(self, places: Sequence[int]) -> Directions:
        """Returns the same directions as somebody sees them for whom there are only some of the blocks."""
        inner = copy(self)
        inner._blocks = len(places)
        inner._energies = self._measured[:, list(places)]
        inner._known = [[row[place] for place in places] for row in self._known]
        return inner

    @property
    def _measured(self) -> Tensor:
        """What was added up on the device; what was known without is in ``_known``."""
        if self._energies is None:
            self._energies = torch.zeros(self.count, self._blocks, dtype=torch.float32, device=self._device)
        return self._energies

    @property
    def lasting(self) -> bool:
        """Whether what ``draw`` returns stays as it is until the next step begins."""
        return self._perturbation.lasting and self._choice.mask is None

    @property
    def chunk(self) -> int:
        """The most numbers that are drawn at a time."""
        return self._perturbation.chunk

    def ranges(self, weight: Weight) -> Sequence[tuple[int, int]]:
        """Returns the (start, stop) of the pieces in which a weight's directions are drawn."""
        return self._perturbation.ranges(weight)

    def keys(self, weight: Weight) -> list[int]:
        """Returns what each direction's draws for a weight are mixed from."""
        if not self._keys:
            seeds = np.array([mix(mix(name, onto=self._seed)) for name in self.names], dtype=np.uint64)
            keys = mix_each([[weight.key] for weight in self.weights], seeds)
            self._keys = dict(zip(self.weights, keys.tolist(), strict=True))
            self._perturbation.expect({w: keys for w, keys in self._keys.items() if not w.parameter.is_meta})
        return self._keys[weight]

    def factors(self, weight: Weight, first: int, stop: int) -> Factors | None:
        """Returns directions first to stop - 1 of a chosen weight, where their law has them as factors, else None."""
        return self._perturbation.factors(weight, self.keys(weight)[first:stop])

    def guide(self, weight: Weight, first: int, stop: int, inputs: Tensor | None, places: Tensor | None) -> None:
        """Shows what directions first to stop - 1 of a weight are applied to; see ``Perturbation.guide``."""
        self._perturbation.guide(weight, self.keys(weight)[first:stop], inputs, places)

    def draw(
        self, direction: int, weight: Weight, start: int, stop: int, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, float]:
        """Draws a piece of uᵢ over a chosen weight.

        Args:
            direction: i.
            weight: A chosen weight.
            start: First element.
            stop: One past the last element; (start, stop) is one of ``ranges(weight)``.
            dtype: float32, or the weight's type where the caller would rather have that.

        Returns:
            v, shape (stop - start,), float32 or of the type asked for, valid until the next draw, and a factor f: the
            piece is f·v.
        """
        z, factor = self._perturbation.draw(weight, self.keys(weight)[direction], start, stop, dtype)
        mask = self._choice.mask
        return (z if mask is None else z * mask.indicator(weight, start, stop)), factor

    def perturb(
        self, origin: Tensor, out: Tensor, weight: Weight, start: int, stop: int, coefficients: Sequence[float]
    ) -> None:
        """Writes θ + Σᵢ cᵢuᵢ of a piece of a chosen weight, computed in float32 or wider and rounded once.

        Args:
            origin: θ of the piece, shape (stop - start,).
            out: Where to, same shape and type; may be ``origin`` itself.
            weight: The weight.
            start: First element.
            stop: One past the last element.
            coefficients: c, shape (k,).
        """
        narrow = out.dtype.itemsize == 2
        moving = [direction for direction, coefficient in enumerate(coefficients) if coefficient]
        if len(moving) == 1:
            u, factor = self.draw(moving[0], weight, start, stop, out.dtype)
            if u.dtype == out.dtype or not narrow:
                torch.add(origin, u, alpha=coefficients[moving[0]] * factor, out=out)
                return
        total = self._scratch.take(stop - start, out.device).copy_(origin) if narrow else out.copy_(origin)
        for direction in moving:
            u, factor = self.draw(direction, weight, start, stop)
            total.add_(u, alpha=coefficients[direction] * factor)
        if narrow:
            out.copy_(total)

    def perturbed_rows(self, origin: Tensor, weight: Weight, ids: Tensor, coefficients: Sequence[float]) -> Tensor:
        """Returns rows of θ + Σᵢ cᵢuᵢ of a chosen matrix; nothing is computed for the others.

        Args:
            origin: θ, shape (rows, d).
            weight: The matrix; its rows are not longer than a chunk.
            ids: Which rows, int, any shape.
            coefficients: c, shape (k,).

        Returns:
            Shape (*ids.shape, d), of the weight's type.
        """
        wanted = ids.reshape(-1)
        rows = functional.embedding(wanted, origin)
        total = rows.float() if rows.dtype.itemsize == 2 else rows
        if ids.device.type != "cpu" and self._choice.mask is None:  # a CPU has pieces in its cache sooner
            moving = [(self.keys(weight)[i], c) for i, c in enumerate(coefficients) if c]
            known = [(self._perturbation.rows(weight, key, wanted), c) for key, c in moving]
            found = [(u, c) for u, c in known if u is not None]
            if len(found) == len(moving):
                for u, c in found:
                    total.add_(u, alpha=c)
                return total.to(origin.dtype).view(*ids.shape, origin.shape[1])
        width = origin.shape[1]
        for start, stop in self.ranges(weight):
            first, last = start // width, stop // width
            inside = (wanted >= first) & (wanted < last)
            # A CPU goes through the rows of this piece alone. To know them, a GPU would have to be waited for.
            places = inside.nonzero().view(-1) if ids.device.type == "cpu" else None
            if places is not None and not len(places):
                continue
            for direction, coefficient in enumerate(coefficients):
                if coefficient == 0.0:
                    continue
                v, factor = self.draw(direction, weight, start, stop)
                u = v.view(-1, width)
                if places is not None:
                    total.index_add_(0, places, u[wanted[places] - first].to(total.dtype), alpha=coefficient * factor)
                else:
                    u = u[(wanted - first).clamp(0, last - first - 1)] * inside.unsqueeze(1)
                    total.add_(u, alpha=coefficient * factor)
        return total.to(origin.dtype).view(*ids.shape, width)

    def _on(self, device: torch.device, coefficients: Sequence[float]) -> Tensor:
        """Returns coefficients on a device, float32; what was asked for last is kept."""
        listed, sent = self._sent
        if listed is not coefficients or sent.device != device:
            # Without the host waiting, as it would for a tensor that is made there.
            sent = torch.tensor(coefficients, dtype=torch.float32).to(device, non_blocking=True)
            self._sent = (coefficients, sent)
        return sent

    def add_gradient(self, piece: Tensor, weight: Weight, start: int, stop: int, coefficients: Sequence[float]) -> None:
        """Adds Σᵢ aᵢûᵢ to a piece, and measures the energies; a weight that was not chosen has none.

        Args:
            piece: Shape (stop - start,), float32 or wider.
            weight: Any weight.
            start: First element.
            stop: One past the last element.
            coefficients: a, shape (k,), any factor included.
        """
        block = self._block_of.get(weight)
        if block is None:
            return
        mask = self._choice.mask
        factors = None if mask else self.factors(weight, 0, self.count)
        if factors is not None:
            if self._choice.measure_energies and start == 0 and self._ranks.counts(weight):
                self._measured[:, block] += factors.energies()
            factors.add(piece, start, stop, self._on(piece.device, coefficients), self._corrections[block])
            return
        # A CPU would convert numbers of 16 bits slowly; a GPU adds them as they are.
        dtype = torch.float32 if piece.device.type == "cpu" else weight.parameter.dtype
        for direction, coefficient in enumerate(coefficients):
            u, factor = self.draw(direction, weight, start, stop, dtype)
            if self._choice.measure_energies and self._ranks.counts(weight):
                known = None
                if mask is None:
                    known = self._perturbation.energy(weight, self.keys(weight)[direction], start, stop)
                if known is None:
                    self._measured[direction, block] += factor**2 * torch.dot(u.float(), u.float()).to(self._device)
                else:
                    self._known[direction][block] += known
            if mask is not None:
                u = u * mask.correction(weight, start, stop)
            piece.add_(u, alpha=coefficient * factor * self._corrections[block])
