"""A layer's weights, perturbed together just before it runs: on a GPU a step's time goes into launching work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zolit.blocks import Weight
from zolit.layers import stack_of
from zolit.probing.perturbed import PerturbedWeight, Probe
from zolit.probing.products import Query
from zolit.probing.views import Places

_LARGEST_SHARE = 1 / 20
_SMALL = 1 << 24


def pays(device: torch.device) -> bool:
    """Tells whether a layer's weights are better perturbed together: a CPU would rather find each in its cache."""
    return device.type not in ("cpu", "meta")


class Ahead:
    """Hands the modules of a layer plain tensors for as long as it runs, instead of views that perturb at each use.

    What a view costs is Python, some tenths of a millisecond for each weight and probe; of directions that outlast
    their drawing, as a pool's do, all those of a layer are added by one or two calls. It takes the memory of one
    layer's weights, and is done for layers of at most a twentieth of the model's weights, or 16 million. Members of
    the model's largest ``nn.ModuleList`` are layers; weights that are used outside of one layer keep their views.

    Args:
        model: The model.
        places: Where modules look for its trainable weights.
    """

    def __init__(self, model: nn.Module, places: Places) -> None:
        most = max(_LARGEST_SHARE * sum(weight.parameter.numel() for weight in places), _SMALL)
        self._places = places
        self._layers: dict[nn.Module, list[Weight]] = {}
        for layer in dict.fromkeys(stack_of(model)[1]):
            inside = set(layer.modules())
            own = [weight for weight, found in places.items() if found and inside.issuperset(m for m, _ in found)]
            if own and sum(weight.parameter.numel() for weight in own) <= most:
                self._layers[layer] = own

    @contextmanager
    def perturbing(self, probe: Probe, views: Sequence[PerturbedWeight]) -> Iterator[None]:
        """Perturbs layers as they are entered, where a forward answers one query.

        Args:
            probe: The views' own.
            views: Those that have been put into their places.
        """
        view_of = {view.weight: view for view in views}
        with ExitStack() as hooks:
            for layer, weights in self._layers.items():
                chosen = [view_of[weight] for weight in weights if weight in view_of]
                if chosen:
                    together = _Together(probe, chosen, self._places)
                    hooks.callback(layer.register_forward_pre_hook(together.enter).remove)
                    hooks.callback(layer.register_forward_hook(together.leave, always_call=True).remove)
            yield


class _Sum(NamedTuple):
    """Weights of a layer that one call perturbs: their places in it, θ, and u but for a factor."""

    members: list[int]
    thetas: list[Tensor]
    us: list[Tensor]


class _Together:
    """The chosen weights of one layer, in one step."""

    def __init__(self, probe: Probe, views: Sequence[PerturbedWeight], places: Places) -> None:
        self._probe = probe
        self._views = views
        self._attributes = [
            (module.__dict__, name, index) for index, view in enumerate(views) for module, name in places[view.weight]
        ]
        self._sums: dict[int, dict[float, _Sum]] = {}

    def enter(self, *_: Any) -> None:
        """Puts perturbed weights where the layer's modules look for them."""
        if len(self._probe.queries) == 1:
            tensors = self._at(self._probe.queries[0])
            for attributes, name, index in self._attributes:
                attributes[name] = tensors[index]

    def leave(self, *_: Any) -> None:
        """Puts the views back."""
        for attributes, name, index in self._attributes:
            attributes[name] = self._views[index]

    def _at(self, query: Query) -> list[Tensor]:
        """Returns the weights at a query."""
        moving = [direction for direction, coefficient in enumerate(query) if coefficient]
        if len(moving) != 1 or not self._probe.directions.lasting:
            return [view.at(query) for view in self._views]
        found: dict[int, Tensor] = {}
        for factor, (members, thetas, us) in self._drawn(moving[0]).items():
            moved = torch._foreach_add(thetas, us, alpha=factor * query[moving[0]])
            found.update(zip(members, moved, strict=True))
        return [found[index] if index in found else view.at(query) for index, view in enumerate(self._views)]

    def _drawn(self, direction: int) -> dict[float, _Sum]:
        """Returns what is to be added, by factors; weights that are drawn in several pieces are left out."""
        sums = self._sums.get(direction)
        if sums is None:
            sums, directions = {}, self._probe.directions
            self._sums[direction] = sums
            for index, view in enumerate(self._views):
                ranges, theta = directions.ranges(view.weight), view.theta
                if len(ranges) == 1:
                    u, factor = directions.draw(direction, view.weight, *ranges[0], theta.dtype)
                    group = sums.setdefault(factor, _Sum([], [], []))
                    group.members.append(index)
                    group.thetas.append(theta)
                    group.us.append(u.view(theta.shape))
        return sums
