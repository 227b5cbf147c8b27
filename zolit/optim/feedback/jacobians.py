"""Learns the mean Jacobian of each layer from the hidden states of forwards with noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

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
        self._clean: dict[str, list[tuple[Tensor, Tensor, Tensor | None]]] = {}
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
            self._clean[name].append((inputs.pop(name), hidden, calls.kept(hidden)))

        with calls.followed(), self._hooks(before, after):
            yield

    def learn(self, base: BasePoint) -> None:
        """Makes the forwards with noise. Called after the forward within ``watching``, on the same batch.

        What is learned counts after ``keep`` only, because a step may still be skipped.

        Raises:
            NotFinite: If a loss or a Jacobian is not finite.
        """
        sums = {name: torch.zeros(()) for name in self._layers}
        products = {name: torch.zeros(()) for name in self._layers}
        for forward in range(self._forwards):
            inputs: dict[str, list[Tensor]] = {name: [] for name in self._layers}
            outputs: dict[str, list[Tensor]] = {name: [] for name in self._layers}
            with self._noise(base, forward, inputs, outputs):
                base.loss()
            for name, pairs in self._clean.items():
                for (clean_in, clean_out, kept), noisy_in, noisy_out in zip(
                    pairs, inputs[name], outputs[name], strict=True
                ):
                    with without_autocast(clean_in.device):
                        u = noisy_in.float() - clean_in.float()
                        w = noisy_out.float() - clean_out.float() - u
                        u, w = _rows(u, w, kept)
                        sums[name] = sums[name].to(u.device) + u.t() @ u
                        products[name] = products[name].to(u.device) + w.t() @ u
        self._clean = {}
        for name in self._layers:
            self._pending[name] = _solved(
                base.collectives.all_mean(sums.pop(name)), base.collectives.all_mean(products.pop(name))
            )
        if not all(bool(jacobian.isfinite().all()) for jacobian in self._pending.values()):
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
    def _noise(
        self,
        base: BasePoint,
        forward: int,
        inputs: dict[str, list[Tensor]],
        outputs: dict[str, list[Tensor]],
    ) -> Iterator[None]:
        places = {name: place for place, name in enumerate(self._layers)}

        def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden, call = hidden_input(args, kwargs), len(inputs[name])
            clean, _, kept = self._clean[name][call]
            key = base.step.key(_PURPOSE, forward, places[name], call)
            generator = self._generators.seeded(key, hidden.device)
            noise = torch.randn(hidden.shape, generator=generator, device=hidden.device, dtype=torch.float32)
            noisy = (hidden.float() + noise * (_NOISE * _typical(clean, kept))).to(hidden.dtype)
            inputs[name].append(noisy.clone())
            return with_hidden_input(args, kwargs, noisy)

        def after(name: str, output: Any) -> None:
            outputs[name].append(hidden_output(output).clone())

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


def _text(hidden: Tensor, kept: Tensor | None) -> Tensor:
    """Returns which tokens are neither padding nor the first of a text; bool, of the shape of ``hidden`` without d."""
    if kept is None:
        kept = torch.ones(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)
    return kept & (kept.cumsum(1) > 1) if kept.ndim > 1 else kept


def _typical(hidden: Tensor, kept: Tensor | None) -> Tensor:
    """Returns the median over the coordinates of their standard deviation over tokens; shape ()."""
    rows = hidden.float().flatten(0, -2)
    weights = _text(hidden, kept).reshape(-1, 1).float()
    rows = torch.where(weights > 0, rows, 0.0)
    count = weights.sum().clamp(min=1.0)
    mean = rows.sum(0) / count
    variance = ((rows - mean).square() * weights).sum(0) / count
    return variance.sqrt().median()


def _rows(u: Tensor, w: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the equations, shape (rows, d) each. Rows that do not count are zero, so that no GPU is waited for."""
    counts = _text(u, kept).flatten()
    u, w = u.flatten(0, -2), w.flatten(0, -2)
    for change in (u, w):
        length = change.norm(dim=1).masked_fill(~counts, torch.nan)
        counts = counts & (length <= _OUTLIER * length.nanmedian())
    return u.masked_fill(~counts[:, None], 0.0), w.masked_fill(~counts[:, None], 0.0)


def _solved(squares: Tensor, products: Tensor) -> Tensor:
    """Returns A = P (S + λI)⁻¹, shape (d, d); 0 without equations."""
    with without_autocast(squares.device):
        ridge = (_RIDGE * squares.diagonal().mean()).clamp(min=1e-30)
        squares.diagonal().add_(ridge)
        factor, _ = torch.linalg.cholesky_ex(squares)
        return torch.cholesky_solve(products.t(), factor).t().contiguous()
