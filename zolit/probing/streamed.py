"""Probing without ever writing the weights: every module computes with θ + Σ cᵢuᵢ as it goes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor, nn

from zolit.blocks import Weight
from zolit.closure import Closure, mean_losses
from zolit.directions import Directions
from zolit.errors import require
from zolit.probing import ahead
from zolit.probing.base import Prober
from zolit.probing.in_place import InPlace
from zolit.probing.perturbed import PerturbedWeight, Probe
from zolit.probing.prefix import Prefix
from zolit.probing.products import Query
from zolit.probing.views import find_places, hidden, placed
from zolit.scratch import Scratch


class _EscapedError(Exception):
    """A forward computed with θ itself, or so it seems."""


class Streamed(Prober):
    """Modules find a ``PerturbedWeight`` where they look for a weight; θ is neither moved nor moved back.

    So weights are exact whatever their type, without a copy, and whoever looks at them during a probe (a hook that
    saves a checkpoint, say) finds θ: ``parameters()`` and ``state_dict()`` do not see what attributes do. A module that
    computes with another module's weight finds it perturbed as well, and tied weights see one noise. A model that also
    holds weights elsewhere than in modules' attributes would compute with θ. The first probe of each weight finds out,
    as it runs while θ is hidden behind NaN; such models are then probed in place. What a model does in later forwards
    alone is not found out, and ``torch.func.functional_call`` with weights of one's own is overruled.

    Layers that come before all perturbed weights are computed once a step. On a GPU a layer's weights are perturbed
    together as it is entered, and its modules find plain tensors meanwhile (``zolit.probing.ahead``).

    Args:
        joint: Answer two queries by one forward, of a batch twice as large, where the closure repeats its batch
            ``copies`` times. That is faster where a forward does not keep the device busy, and takes the memory of
            twice the activations.
    """

    def __init__(self, joint: bool = False) -> None:
        self._joint = joint
        self._copies = 1
        self._asked = False
        self._trusted: set[Weight] = set()
        self._checked_joint = False
        self._fallback: InPlace | None = None
        self._scratch: dict[torch.dtype, Scratch] = {}

    @property
    def copies(self) -> int:  # type: ignore[override]  # a plain attribute elsewhere
        """How often the closure is to repeat its batch; asking says that it does."""
        self._asked = True
        return self._copies

    def bind(self, model: nn.Module, weights: Sequence[Weight]) -> None:
        """Finds the attributes under which modules look for weights; see the base class."""
        self._places = find_places(model, weights)
        self._prefix = Prefix(model, self._places)
        self._ahead = ahead.Ahead(model, self._places)

    def losses(self, closure: Closure, directions: Directions, queries: Tensor) -> Tensor:
        """Evaluates the queries; see the base class."""
        if self._fallback is not None:
            return self._fallback.losses(closure, directions, queries)
        rows: list[Query] = queries.tolist()
        length = self._prefix.length(directions.weights)
        try:
            with self._perturbed(directions) as probe:
                if self._joint and not length and self._trusted.issuperset(directions.weights):
                    joint = self._joint_losses(closure, probe, rows)
                    if joint is not None:
                        return joint
                return self._single_losses(closure, probe, rows, length)
        except _EscapedError as trouble:
            return self._fall_back(closure, directions, queries, trouble)

    def _single_losses(self, closure: Closure, probe: Probe, rows: Sequence[Query], length: int) -> Tensor:
        """Answers one query by a forward; the first ``length`` layers are computed once."""
        losses = []
        with self._prefix.shared(length) as restart:
            for row in rows:
                restart()
                new = [weight for weight in probe.directions.weights if weight not in self._trusted]
                losses.append(self._try(closure, probe, row, new) if new else self._forward(closure, probe, [row]))
        if length and len(rows) > 1 and not self._prefix.is_proven(length):
            last = self._forward(closure, probe, rows[-1:])
            self._prefix.prove(length, torch.equal(last, losses[-1]))
            if not self._prefix.is_proven(length):
                warnings.warn("probing: layers below all perturbed weights cannot be left out of a probe", stacklevel=1)
                return self._single_losses(closure, probe, rows, 0)
        return torch.cat(losses)

    def _joint_losses(self, closure: Closure, probe: Probe, rows: Sequence[Query]) -> Tensor | None:
        """Answers two queries by a forward; returns None where that turns out not to be possible."""
        if not self._checked_joint:
            self._check_joint(closure, probe, rows[0])
        if not self._joint:
            return None
        pairs = [rows[start : start + 2] for start in range(0, len(rows), 2)]
        try:
            return torch.cat([self._forward(closure, probe, pair) for pair in pairs])
        except Exception:  # the copies' shapes do not fit, or the closure is to blame, and will raise again
            self._part("a later batch or choice of weights does not allow it")
            return None

    def _part(self, reason: str) -> None:
        self._joint = False
        warnings.warn(f"probing: two probes cannot share a forward, {reason}; they take one each", stacklevel=1)

    def _forward(self, closure: Closure, probe: Probe, queries: Sequence[Query]) -> Tensor:
        """Returns the losses of one forward that answers these queries, shape (queries,)."""
        probe.queries = queries
        self._copies = len(queries)
        try:
            return mean_losses(closure, self._copies)
        finally:
            self._copies = 1

    @contextmanager
    def _perturbed(self, directions: Directions) -> Iterator[Probe]:
        """Puts perturbed weights where modules look for the chosen ones."""
        probe = Probe(directions, self._scratch)
        views = [PerturbedWeight.of(weight, probe) for weight in directions.weights]
        together = any(ahead.pays(view.theta.device) for view in views)
        with placed(views, self._places), self._ahead.perturbing(probe, views) if together else nullcontext():
            yield probe

    def _try(self, closure: Closure, probe: Probe, query: Query, weights: list[Weight]) -> Tensor:
        """Makes a forward while θ of these weights is hidden.

        Raises:
            _EscapedError: If somebody seems to have looked for θ.
        """
        learning = nullcontext() if self._trusted else self._prefix.learning()
        try:
            with hidden(weights), learning:
                losses = self._forward(closure, probe, [query])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model that finds NaN does about it
            raise _EscapedError(f"it raises {type(error).__name__}") from error
        if not losses.isfinite().all():
            raise _EscapedError("its loss is not finite")
        self._trusted.update(weights)
        return losses

    def _fall_back(self, closure: Closure, directions: Directions, queries: Tensor, trouble: _EscapedError) -> Tensor:
        """Evaluates the queries in place, and goes on in place if that is what helped."""
        require(
            not any(weight.parameter.is_meta for weight in directions.weights),
            f"probing: the model cannot be probed as a stream ({trouble}), and with trainer.strategy `split`, where no "
            "process has all layers, not in place either",
        )
        losses = InPlace(exact=True).losses(closure, directions, queries)  # raises too if the closure is to blame
        if losses.isfinite().all():
            self._fallback = InPlace()
            warnings.warn(
                f"probing: the model holds weights elsewhere than in its modules' attributes (probed as a stream, "
                f"{trouble}); they are moved in place instead, with weights of 16 bits by a copy of them",
                stacklevel=1,
            )
        return losses

    def _check_joint(self, closure: Closure, probe: Probe, query: Query) -> None:
        """Compares one joint forward with two single ones, far enough from θ for a difference to show."""
        self._checked_joint = True
        self._asked = False

        def counted() -> Tensor:
            losses = closure()
            probe.examples = losses.numel()
            return losses

        home = [0.0] * len(query)
        (here,) = self._forward(counted, probe, [home]).tolist()
        for factor in (8.0, 64.0, 512.0):
            away = [factor * coefficient for coefficient in query]
            (there,) = self._forward(closure, probe, [away]).tolist()
            if not abs(there - here) < 0.01 * abs(here):
                break
        if not self._asked:
            self._part("the closure does not repeat its batch `copies` times")
            return
        with suppress(Exception):  # whatever a model makes of copies that do not fit
            joint = self._forward(closure, probe, [home, away]).tolist()
            narrow = any(weight.parameter.dtype.itemsize == 2 for weight in probe.directions.weights)
            limit = (0.1 if narrow else 1e-3) * abs(there - here)
            if max(abs(joint[0] - here), abs(joint[1] - there)) <= limit:
                probe.examples = 1  # the next batch may have another number
                return
        self._part("the model mixes the examples of a batch, or does not have them along the first dimension")

    def scratch_bytes(self) -> int:
        """Returns the bytes of the buffers that matrices are perturbed in."""
        held = sum(scratch.bytes() for scratch in self._scratch.values())
        return held + (self._fallback.scratch_bytes() if self._fallback else 0)
