"""Learns the mean Jacobian of each layer from the hidden states of forwards with noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zolit.optim.base_point import BasePoint, NotFinite
from zolit.optim.feedback.stream import hidden_input, hidden_output, with_hidden_input
from zolit.optim.modules.calls import ModelCalls
from zolit.optim.precision import without_autocast
from zolit.optim.randomness import Generators, key_of

_PURPOSE = key_of("noise in the hidden states")
_NOISE = 0.05
_RIDGE = 0.01
_OUTLIER = 4.0


class Jacobians:
    """Mean Jacobians A_l = E[∂f_l/∂h] of layers h ↦ h + f_l(h), by least squares and without a backward pass.

    A forward with noise at the input of every layer is compared with a forward without noise, on the same texts. Layer
    l sees the change u of its input, which contains the noise of the layers before it, and changes its output by u + w.
    All tokens of a forward are equations for all layers: A = (Σ w uᵀ)(Σ u uᵀ + λI)⁻¹. λ is .01 of the mean of the
    diagonal of Σ u uᵀ. The noise is normal, with .05 of the median standard deviation of a coordinate of the input.
    Padding and the first token of a text are left out, as are tokens whose u or w is four times as long as the median.
    The method is of this project.

    Args:
        layers: The layers, by name.
        forwards: Number of forwards with noise. With 0, the Jacobians of all f_l are taken for 0.

    Attributes:
        learned: A_l of each layer by its name, shape (d, d), float32; empty before the last forward with noise.
    """

    def __init__(self, layers: Mapping[str, nn.Module], forwards: int) -> None:
        self._layers = dict(layers)
        self._forwards = forwards if layers else 0
        self._generators = Generators()
        self._clean: dict[str, list[_States]] = {}
        self._pending: dict[str, Tensor] = {}
        self.learned: dict[str, Tensor] = {}

    @property
    def due(self) -> bool:
        """Whether the forwards with noise are still to be made."""
        return self._forwards > 0 and not self.learned

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Keeps the hidden states of the forward without noise, which is made within the context."""
        self._clean = {name: [] for name in self._layers}
        calls = ModelCalls(model)
        inputs: dict[str, Tensor] = {}

        def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs[name] = hidden_input(args, kwargs).detach().clone()

        def after(name: str, output: Any) -> None:
            hidden = hidden_output(output).detach().clone()
            counts = _counted(hidden, calls.kept(hidden))
            before = inputs.pop(name)
            self._clean[name].append(_States(before, hidden, counts, _NOISE * _typical(before, counts)))

        with calls.followed(), self._hooks(before, after):
            yield

    def learn(self, base: BasePoint) -> None:
        """Makes the forwards with noise. Called after the forward within ``watching``, on the same batch.

        What is learned counts after ``keep`` only, because a step may still be skipped.

        Raises:
            NotFinite: If a loss or a Jacobian is not finite.
        """
        sums = {name: _Sums(states[0].before) for name, states in self._clean.items()}
        for forward in range(self._forwards):
            with self._noise(base, forward, sums):
                base.loss()
        self._clean = {}
        for name in self._layers:
            own = sums.pop(name)
            squares, products = (base.collectives.all_mean(side) for side in (own.squares, own.products))
            self._pending[name] = _solved(squares, products)
        if not torch.stack([jacobian.isfinite().all().cpu() for jacobian in self._pending.values()]).all():
            raise NotFinite("the calibration")

    def keep(self) -> None:
        """Keeps what ``learn`` has learned. Called when the step is not skipped."""
        self.learned.update(self._pending)
        self._pending = {}

    def forget(self) -> None:
        """Drops what ``learn`` has learned. Called when the step is skipped."""
        self._clean, self._pending = {}, {}

    def pulled_back(self, name: str, delta: Tensor) -> Tensor:
        """Returns (I + A_l)ᵀδ for each row δ, the gradient before layer l; shape (rows, d), float32."""
        jacobian = self._pending.get(name, self.learned.get(name))
        if jacobian is None:
            return delta
        return delta + delta @ jacobian.to(delta.device)

    def load(self, learned: Mapping[str, Tensor]) -> None:
        """Takes Jacobians that were learned before."""
        self.learned = dict(learned)

    @contextmanager
    def _noise(self, base: BasePoint, forward: int, sums: Mapping[str, _Sums]) -> Iterator[None]:
        """Adds noise to the input of each layer, and the equations of each call to the sums."""
        places = {name: place for place, name in enumerate(self._layers)}
        calls = dict.fromkeys(self._layers, 0)
        inputs: dict[str, Tensor] = {}

        def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden, states = hidden_input(args, kwargs), self._clean[name][calls[name]]
            key = base.step.key(_PURPOSE, forward, places[name], calls[name])
            generator = self._generators.seeded(key, hidden.device)
            noise = torch.randn(hidden.shape, generator=generator, device=hidden.device, dtype=torch.float32)
            noisy = (hidden.float() + noise * states.noise).to(hidden.dtype)
            inputs[name] = noisy.clone()  # a layer may add to its input in place
            return with_hidden_input(args, kwargs, noisy)

        def after(name: str, output: Any) -> None:
            states = self._clean[name][calls[name]]
            calls[name] += 1
            with without_autocast(states.before.device):
                sums[name].add(states, inputs.pop(name), hidden_output(output))

        with self._hooks(before, after):
            yield

    @contextmanager
    def _hooks(
        self, before: Callable[[str, tuple[Any, ...], dict[str, Any]], Any], after: Callable[[str, Any], None]
    ) -> Iterator[None]:
        with ExitStack() as hooks:
            for name, layer in self._layers.items():
                enter = layer.register_forward_pre_hook(
                    lambda _, args, kwargs, n=name: before(n, args, kwargs), with_kwargs=True
                )
                leave = layer.register_forward_hook(lambda _, args, output, n=name: after(n, output), prepend=True)
                hooks.callback(enter.remove)
                hooks.callback(leave.remove)
            yield


class _States(NamedTuple):
    """The hidden states of a call of a layer without noise.

    Attributes:
        before: The input of the layer.
        after: Its output.
        counts: Which tokens are neither padding nor the first of a text, of the shape of the states without d.
        noise: The standard deviation of the noise, shape ().
    """

    before: Tensor
    after: Tensor
    counts: Tensor
    noise: Tensor


class _Sums:
    """Σ u uᵀ and Σ w uᵀ of a layer, shape (d, d) each, float32."""

    def __init__(self, like: Tensor) -> None:
        width = like.shape[-1]
        self.squares, self.products = torch.zeros(2, width, width, dtype=torch.float32, device=like.device)

    def add(self, states: _States, before: Tensor, after: Tensor) -> None:
        """Adds the tokens of a call. Rows that do not count become zero, so that no GPU is waited for."""
        u = (before.float() - states.before.float()).flatten(0, -2)
        w = (after.float() - states.after.float()).flatten(0, -2) - u
        counts = states.counts.flatten()
        for change in (u, w):
            length = change.norm(dim=1).masked_fill(~counts, torch.nan)
            counts = counts & (length <= _OUTLIER * length.nanmedian())
        u, w = (change.masked_fill(~counts[:, None], 0.0) for change in (u, w))
        self.squares += u.t() @ u
        self.products += w.t() @ u


def _counted(hidden: Tensor, kept: Tensor | None) -> Tensor:
    """Returns which tokens are neither padding nor the first of a text; bool, of the shape of ``hidden`` without d."""
    if kept is None:
        kept = torch.ones(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)
    return kept & (kept.cumsum(1) > 1) if kept.ndim > 1 else kept


def _typical(hidden: Tensor, counts: Tensor) -> Tensor:
    """Returns the median over the coordinates of their standard deviation over tokens; shape (), float32."""
    weights = counts.reshape(-1, 1)
    rows = hidden.float().flatten(0, -2).masked_fill(~weights, 0.0)
    count = weights.sum().clamp(min=1)
    mean = rows.sum(0) / count
    return ((rows - mean).square() * weights).sum(0).div(count).sqrt().median()


def _solved(squares: Tensor, products: Tensor) -> Tensor:
    """Returns A = P (S + λI)⁻¹, shape (d, d); 0 without equations."""
    with without_autocast(squares.device):
        ridge = (_RIDGE * squares.diagonal().mean()).clamp(min=1e-30)
        squares.diagonal().add_(ridge)
        factor, _ = torch.linalg.cholesky_ex(squares)
        return torch.cholesky_solve(products.t(), factor).t().contiguous()
