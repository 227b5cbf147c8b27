"""The prober that never writes the weights: modules compute with θ + Σ cᵢuᵢ while they run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from zolit.errors import require
from zolit.optim.base_point import Closure, mean_losses
from zolit.optim.blocks import Block, Weight
from zolit.optim.buffers import Scratch
from zolit.optim.perturbation.directions import Directions
from zolit.optim.probing.base import Prober
from zolit.optim.probing.in_place import InPlace
from zolit.optim.probing.streamed import layerwise
from zolit.optim.probing.streamed.layer_reuse import LayerReuse
from zolit.optim.probing.streamed.probe import Probe, Query
from zolit.optim.probing.streamed.weight import PerturbedWeight
from zolit.optim.probing.views import find_sites, installed, poisoned


class _EscapedError(Exception):
    """Raised when a forward seems to have computed with θ itself."""


class Streamed(Prober):
    """Replaces each weight in the attribute of its module by a ``PerturbedWeight``; θ itself is never written.

    θ therefore stays exact for all types, without a copy. ``parameters()`` and ``state_dict()`` return θ during a probe
    too, for example to a hook that saves a checkpoint. A module that computes with the weight of another module gets
    the perturbed weight. Tied weights get the same noise.

    A model that holds weights elsewhere than in attributes of modules would compute with θ. The first probe of each
    weight detects this, because θ reads as NaN in it. Such a model is probed in place from then on. The prober does not
    detect a model that bypasses the attributes in later forwards only. Weights that ``torch.func.functional_call``
    passes to a module are ignored, because the views take precedence.

    Layers before all perturbed weights are computed once a step (``layer_reuse``). On a GPU all weights of a layer are
    perturbed together when the layer begins (``layerwise``).

    Args:
        joint: Whether to answer two queries by one forward of a batch twice as large. The closure must repeat its batch
            ``batch_repeats`` times. This is faster if one forward does not keep the device busy. It takes twice the
            memory of activations.
    """

    def __init__(self, joint: bool = False) -> None:
        self._joint = joint
        self.batch_repeats = 1
        self._verified: set[Weight] = set()
        self._joint_is_checked = False
        self._fallback: InPlace | None = None
        self._scratch: dict[torch.dtype, Scratch] = {}
        self._sums = Scratch()

    def bind(self, model: nn.Module, weights: Sequence[Weight], blocks: Sequence[Block]) -> None:
        """Finds the attributes in which modules hold weights; see ``Stage.bind``."""
        self._sites = find_sites(model, weights)
        self._reuse = LayerReuse(model, self._sites)
        self._layerwise = layerwise.LayerwiseWeights(model, self._sites)

    def losses(self, closure: Closure, directions: Directions, queries: Tensor, repeats_batch: bool = False) -> Tensor:
        """Computes the losses, by one forward for each query or for each pair of queries; see ``Prober.losses``."""
        if self._fallback is not None:
            return self._fallback.losses(closure, directions, queries)
        rows: list[Query] = queries.tolist()
        length = self._reuse.length(directions.weights)
        try:
            with self._perturbed(directions) as probe:
                if self._joint and not length and self._verified.issuperset(directions.weights):
                    joint = self._joint_losses(closure, probe, rows, repeats_batch)
                    if joint is not None:
                        return joint
                return self._single_losses(closure, probe, rows, length)
        except _EscapedError as trouble:
            return self._fall_back(closure, directions, queries, trouble)

    def _single_losses(self, closure: Closure, probe: Probe, rows: Sequence[Query], length: int) -> Tensor:
        """Answers each query by one forward. The first ``length`` layers are computed only once."""
        losses = []
        with self._reuse.reuse(length) as restart:
            for row in rows:
                restart()
                new = [weight for weight in probe.directions.weights if weight not in self._verified]
                if new:
                    losses.append(self._checked_forward(closure, probe, row, new))
                else:
                    losses.append(self._forward(closure, probe, [row]))
        if length and len(rows) > 1 and not self._reuse.is_proven(length):
            last = self._forward(closure, probe, rows[-1:])
            self._reuse.record(length, torch.equal(last, losses[-1]))
            if not self._reuse.is_proven(length):
                warnings.warn(
                    "probing: the layers before all perturbed weights cannot be reused; each probe computes all layers",
                    stacklevel=1,
                )
                return self._single_losses(closure, probe, rows, 0)
        return torch.cat(losses)

    def _joint_losses(
        self, closure: Closure, probe: Probe, rows: Sequence[Query], repeats_batch: bool
    ) -> Tensor | None:
        """Answers each pair of queries by one forward; returns None if that is not possible."""
        if not repeats_batch:
            self._disable_joint("the closure does not repeat its batch `batch_repeats` times (step: repeats_batch)")
        elif not self._joint_is_checked:
            self._check_joint(closure, probe, rows[0])
        if not self._joint:
            return None
        pairs = [rows[start : start + 2] for start in range(0, len(rows), 2)]
        try:
            return torch.cat([self._forward(closure, probe, pair) for pair in pairs])
        except Exception:  # shapes of the copies do not fit; single probes repeat an error of the closure
            self._disable_joint("a later batch or sample of weights does not allow it")
            return None

    def _disable_joint(self, reason: str) -> None:
        self._joint = False
        warnings.warn(f"probing: two probes cannot share a forward: {reason}; each takes a separate one", stacklevel=1)

    def _forward(self, closure: Closure, probe: Probe, queries: Sequence[Query]) -> Tensor:
        """Makes one forward that answers these queries, and returns the losses, shape (queries,)."""
        probe.queries = queries
        self.batch_repeats = len(queries)
        try:
            return mean_losses(closure, self.batch_repeats)
        finally:
            self.batch_repeats = 1

    @contextmanager
    def _perturbed(self, directions: Directions) -> Iterator[Probe]:
        """Replaces the sampled weights by views, for the time of the context."""
        probe = Probe(directions, self._scratch, self._sums)
        views = [PerturbedWeight.of(weight, probe) for weight in directions.weights]
        fused = any(layerwise.pays(view.theta.device) for view in views)
        with installed(views, self._sites), self._layerwise.perturbing(probe, views) if fused else nullcontext():
            yield probe

    def _checked_forward(self, closure: Closure, probe: Probe, query: Query, weights: list[Weight]) -> Tensor:
        """Makes a forward while θ of these weights reads as NaN.

        Raises:
            _EscapedError: If the model seems to have read θ.
        """
        tracing = nullcontext() if self._verified else self._reuse.trace()
        try:
            with poisoned(weights), tracing:
                losses = self._forward(closure, probe, [query])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model that meets NaN may raise any exception
            raise _EscapedError(f"it raises {type(error).__name__}") from error
        if not losses.isfinite().all():
            raise _EscapedError("its loss is not finite")
        self._verified.update(weights)
        return losses

    def _fall_back(self, closure: Closure, directions: Directions, queries: Tensor, trouble: _EscapedError) -> Tensor:
        """Evaluates the queries in place. If the losses are finite, all later steps are in place too."""
        require(
            not any(weight.parameter.is_meta for weight in directions.weights),
            f"probing: the model cannot be probed as a stream ({trouble}), and with trainer.strategy `split` it cannot "
            "be probed in place either, because no process has all layers; use another strategy",
        )
        # If the closure is the cause, this raises its exception again.
        losses = InPlace(exact=True).losses(closure, directions, queries)
        if losses.isfinite().all():
            self._fallback = InPlace()
            warnings.warn(
                f"probing: the model holds weights elsewhere than in its modules' attributes (probed as a stream, "
                f"{trouble}); they are moved in place instead, and weights of 16 bits are copied for that",
                stacklevel=1,
            )
        return losses

    def _check_joint(self, closure: Closure, probe: Probe, query: Query) -> None:
        """Compares one joint forward with two single ones, with one query so far from θ that the losses differ."""
        self._joint_is_checked = True

        def counted() -> Tensor:
            losses = closure()
            probe.examples = losses.numel()
            return losses

        base = [0.0] * len(query)
        (near,) = self._forward(counted, probe, [base]).tolist()
        for factor in (8.0, 64.0, 512.0):
            distant = [factor * coefficient for coefficient in query]
            (far,) = self._forward(closure, probe, [distant]).tolist()
            if not abs(far - near) < 0.01 * abs(near):
                break
        with suppress(Exception):  # a model may raise any exception for copies that do not fit
            joint = self._forward(closure, probe, [base, distant]).tolist()
            narrow = any(weight.parameter.dtype.itemsize == 2 for weight in probe.directions.weights)
            limit = (0.1 if narrow else 1e-3) * abs(far - near)
            if max(abs(joint[0] - near), abs(joint[1] - far)) <= limit:
                probe.examples = 1  # the next batch may have another size
                return
        self._disable_joint("the model mixes the examples of a batch, or does not have them along the first dimension")

    def state_dict(self) -> dict[str, Any]:
        """Returns whether the model is probed in place, which rounds float32 weights; see ``Stage.state_dict``."""
        return {"in_place": self._fallback is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on in place, if the saved run did; see ``Stage.load_state_dict``."""
        if state.get("in_place"):  # a state of another prober has no such entry
            self._fallback = InPlace()

    def scratch_bytes(self) -> int:
        """Returns the bytes of the buffers for perturbed matrices and sums; see ``Stage.scratch_bytes``."""
        held = sum(scratch.bytes() for scratch in self._scratch.values()) + self._sums.bytes()
        return held + (self._fallback.scratch_bytes() if self._fallback else 0)
