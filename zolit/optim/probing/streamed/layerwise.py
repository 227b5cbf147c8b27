"""Perturbs all weights of a layer at once, just before the layer runs. This saves kernel launches on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zolit.optim.blocks import Weight
from zolit.optim.modules.layers import find_layers
from zolit.optim.probing.streamed.probe import Probe, Query
from zolit.optim.probing.streamed.weight import PerturbedWeight
from zolit.optim.probing.views import Sites

_LARGEST_SHARE = 1 / 20
_SMALL = 1 << 24


def pays(device: torch.device) -> bool:
    """Returns whether it is faster to perturb a layer at once. Called once for each call of the prober.

    On a CPU it is slower, because a weight should stay in the cache.
    """
    return device.type not in ("cpu", "meta")


class LayerwiseWeights:
    """Perturbs all weights of a layer in one fused call when it begins, and restores the views when it ends.

    A view costs some tenths of a millisecond of Python for each weight and probe. If draws persist, as those of a pool
    do, one or two calls perturb a whole layer. This takes the memory of the weights of one layer. It is done for layers
    of at most a twentieth of the weights of the model, or of at most 16 million weights. Layers are the members of the
    largest ``nn.ModuleList`` of the model. Weights that are used outside of one layer keep their views.

    Args:
        model: The model.
        sites: The modules that hold its trainable weights.
    """

    def __init__(self, model: nn.Module, sites: Sites) -> None:
        most = max(_LARGEST_SHARE * sum(weight.parameter.numel() for weight in sites), _SMALL)
        self._sites = sites
        self._layers: dict[nn.Module, list[Weight]] = {}
        for layer in dict.fromkeys(find_layers(model)[1]):
            inside = set(layer.modules())
            own = [weight for weight, found in sites.items() if found and inside.issuperset(m for m, _ in found)]
            if own and sum(weight.parameter.numel() for weight in own) <= most:
                self._layers[layer] = own

    @contextmanager
    def perturbing(self, probe: Probe, views: Sequence[PerturbedWeight]) -> Iterator[None]:
        """Perturbs each layer when it begins, in forwards of one query. Used for each call of the prober.

        Args:
            probe: The state that the views share.
            views: The installed views.
        """
        view_of = {view.weight: view for view in views}
        with ExitStack() as hooks:
            for layer, weights in self._layers.items():
                chosen = [view_of[weight] for weight in weights if weight in view_of]
                if chosen:
                    fused = _FusedLayer(probe, chosen, self._sites)
                    hooks.callback(layer.register_forward_pre_hook(fused.enter).remove)
                    hooks.callback(layer.register_forward_hook(fused.leave, always_call=True).remove)
            yield


class _Sum(NamedTuple):
    """Weights of a layer that one call perturbs: their indices in the layer, their θ, and u without its factor."""

    members: list[int]
    thetas: list[Tensor]
    us: list[Tensor]


class _FusedLayer:
    """Perturbs the sampled weights of one layer. One object is made for each layer and call of the prober."""

    def __init__(self, probe: Probe, views: Sequence[PerturbedWeight], sites: Sites) -> None:
        self._probe = probe
        self._views = views
        self._attributes = [
            (module.__dict__, name, index) for index, view in enumerate(views) for module, name in sites[view.weight]
        ]
        self._sums: dict[int, dict[float, _Sum]] = {}

    def enter(self, *_: Any) -> None:
        """Replaces the views by perturbed weights. A hook, called before each forward of the layer."""
        if len(self._probe.queries) == 1:
            tensors = self._at(self._probe.queries[0])
            for attributes, name, index in self._attributes:
                attributes[name] = tensors[index]

    def leave(self, *_: Any) -> None:
        """Restores the views. A hook, called after each forward of the layer."""
        for attributes, name, index in self._attributes:
            attributes[name] = self._views[index]

    def _at(self, query: Query) -> list[Tensor]:
        """Returns the weights at a query."""
        moving = [direction for direction, coefficient in enumerate(query) if coefficient]
        if len(moving) != 1 or not self._probe.directions.draws_persist:
            return [self._probe.at(view, query) for view in self._views]
        found: dict[int, Tensor] = {}
        for factor, (members, thetas, us) in self._drawn(moving[0]).items():
            moved = torch._foreach_add(thetas, us, alpha=factor * query[moving[0]])
            found.update(zip(members, moved, strict=True))
        return [
            found[index] if index in found else self._probe.at(view, query) for index, view in enumerate(self._views)
        ]

    def _drawn(self, direction: int) -> dict[float, _Sum]:
        """Returns u of the weights that are drawn in one piece, grouped by factor."""
        sums = self._sums.get(direction)
        if sums is None:
            sums, directions = {}, self._probe.directions
            self._sums[direction] = sums
            for index, view in enumerate(self._views):
                chunks, theta = directions.chunks(view.weight), view.theta
                if len(chunks) == 1:
                    u, factor = directions.draw(direction, view.weight, *chunks[0], theta.dtype)
                    group = sums.setdefault(factor, _Sum([], [], []))
                    group.members.append(index)
                    group.thetas.append(theta)
                    group.us.append(u.view(theta.shape))
        return sums
