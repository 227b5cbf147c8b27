"""Compares a forward with noise in the hidden states with one without, and solves for the mean Jacobians of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from zolit.optim.feedback.stream import hidden_input, hidden_output, with_hidden_input
from zolit.optim.modules.calls import ModelCalls
from zolit.optim.precision import without_autocast
from zolit.optim.randomness import Generators, Step, key_of

_PURPOSE = key_of("noise in the hidden states")
_TOKENS = key_of("tokens of mean Jacobians")
_NOISE = 0.05
_RIDGE = 0.01
_OUTLIER = 4.0


class Equations:
    """The equations w = A u of a layer: u is a change of its input, and u + w is the change of its output.

    Args:
        like: An input of the layer, shape (..., d).

    Attributes:
        squares: Σ u uᵀ over tokens, shape (d, d), float32.
        products: Σ w uᵀ, shape (d, d), float32.
        size: Σ ‖w‖², shape (), float32.
        tokens: Number of tokens, shape (), int64.
    """

    def __init__(self, like: Tensor) -> None:
        width = like.shape[-1]
        self.squares, self.products = torch.zeros(2, width, width, dtype=torch.float32, device=like.device)
        self.size = torch.zeros((), dtype=torch.float32, device=like.device)
        self.tokens = torch.zeros((), dtype=torch.int64, device=like.device)

    def add(self, u: Tensor, w: Tensor, counts: Tensor) -> None:
        """Adds one equation for each token that counts; see ``without_outliers``."""
        u, w = without_outliers(u, w, counts)
        self.squares += u.t() @ u
        self.products += w.t() @ u
        self.size += w.square().sum()
        self.tokens += u.any(1).sum()

    def solved(self) -> Tensor:
        """Returns A = (Σ w uᵀ)(Σ u uᵀ + λI)⁻¹, shape (d, d); 0 without equations. λ is .01 of the mean diagonal."""
        with without_autocast(self.squares.device):
            squares = self.squares.clone()
            squares.diagonal().add_((_RIDGE * squares.diagonal().mean()).clamp(min=1e-30))
            factor, _ = torch.linalg.cholesky_ex(squares)
            return torch.cholesky_solve(self.products.t(), factor).t().contiguous()

    def explained(self, jacobian: Tensor) -> Tensor:
        """Returns R² = 1 - Σ ‖w - A u‖² / Σ ‖w‖², shape (), float32; 1 if all w are 0.

        Args:
            jacobian: A, shape (d, d), float32.
        """
        with without_autocast(self.squares.device):
            both = (jacobian * self.products).sum()
            own = (jacobian @ self.squares * jacobian).sum()
            return (2.0 * both - own) / self.size if self.size > 0.0 else torch.ones_like(self.size)


class Receiver(Protocol):
    """What takes the equations of a layer."""

    def add(self, u: Tensor, w: Tensor, counts: Tensor) -> None:
        """Adds one equation for each token that counts; see ``without_outliers``."""


class NoisyForwards:
    """Adds noise to the input of every layer, and collects the equations of all layers.

    A forward with noise is compared with a forward without noise, on the same texts. Layer l sees the change u of its
    input, which contains the noise of the layers before it, and changes its output by u + w. The noise is normal, with
    .05 of the median standard deviation of a coordinate of the input. Padding and the first token of a text are left
    out.

    Args:
        layers: The layers, by name.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = dict(layers)
        self._generators = Generators()
        self._clean: dict[str, list[_States]] = {}

    @contextmanager
    def watching(self, model: nn.Module, step: Step, most: int | None = None) -> Iterator[None]:
        """Keeps the hidden states of the forward without noise, which is made within the context.

        Args:
            model: The model.
            step: If only some tokens are kept, their choice is hashed from it.
            most: How many tokens of each call are kept; None keeps all.
        """
        self._clean = {name: [] for name in self._layers}
        calls = ModelCalls(model)
        inputs: dict[str, Tensor] = {}

        def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs[name] = hidden_input(args, kwargs).detach().clone()

        def after(name: str, output: Any) -> None:
            before, after = inputs.pop(name), hidden_output(output).detach()
            counts = _counted(after, calls.kept(after))
            noise = _NOISE * _typical(before, counts)
            counts = counts.flatten()
            places = self._some(step.key(_TOKENS, len(self._clean[name])), counts, most)
            kept = (_at(before, places), _at(after, places).clone(), counts if places is None else counts[places])
            self._clean[name].append(_States(*kept, noise, places))

        with calls.followed(), self._hooks(before, after):
            yield

    def empty(self) -> dict[str, Equations]:
        """Returns equations without a token for each layer. Called after the forward within ``watching``."""
        return {name: Equations(states[0].before) for name, states in self._clean.items()}

    @contextmanager
    def noise(
        self, step: Step, forward: int, equations: Mapping[str, Receiver], is_last: bool = False
    ) -> Iterator[None]:
        """Adds noise to the input of each layer, and the equations of each call to those of the layer.

        A forward on the batch of ``watching`` is made within the context.

        Args:
            step: The keys of the noise are hashed from it, and from ``forward``.
            forward: The number of the forward within the step.
            equations: What takes the equations of each layer, by its name.
            is_last: Whether no other forward follows. The states without noise are then freed layer by layer.
        """
        places = {name: place for place, name in enumerate(self._layers)}
        calls = dict.fromkeys(self._layers, 0)
        inputs: dict[str, Tensor] = {}

        def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden, states = hidden_input(args, kwargs), self._clean[name][calls[name]]
            key = step.key(_PURPOSE, forward, places[name], calls[name])
            generator = self._generators.seeded(key, hidden.device)
            noise = torch.randn(hidden.shape, generator=generator, device=hidden.device, dtype=torch.float32)
            noisy = (hidden.float() + noise * states.noise).to(hidden.dtype)
            inputs[name] = _at(noisy, states.places).clone()  # a layer may add to its input in place
            return with_hidden_input(args, kwargs, noisy)

        def after(name: str, output: Any) -> None:
            states = self._clean[name][calls[name]]
            if is_last:
                self._clean[name][calls[name]] = _NOTHING
            calls[name] += 1
            with without_autocast(states.before.device):
                u = inputs.pop(name).float() - states.before.float()
                w = _at(hidden_output(output), states.places).float() - states.after.float() - u
                equations[name].add(u, w, states.counts)

        with self._hooks(before, after):
            yield

    def forget(self) -> None:
        """Drops the hidden states of the forward without noise."""
        self._clean = {}

    def _some(self, key: int, counts: Tensor, most: int | None) -> Tensor | None:
        """Returns the places of a random choice of tokens, of those that count first; None if all are kept."""
        if most is None or most >= len(counts):
            return None
        generator = self._generators.seeded(key, counts.device)
        order = torch.rand(counts.shape, generator=generator, device=counts.device)
        return (order + counts).topk(most).indices

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


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Returns whether no value is NaN or infinite. A GPU is waited for once."""
    return bool(torch.stack([tensor.isfinite().all().cpu() for tensor in tensors]).all())


class _States(NamedTuple):
    """The hidden states of a call of a layer without noise.

    Attributes:
        before: The input of the layer, shape (tokens, d).
        after: Its output, of the same shape.
        counts: Which tokens are neither padding nor the first of a text, shape (tokens,).
        noise: The standard deviation of the noise, shape ().
        places: Places of these tokens among all of the call, shape (tokens,); None if they are all.
    """

    before: Tensor
    after: Tensor
    counts: Tensor
    noise: Tensor
    places: Tensor | None


_EMPTY = torch.empty(0)
_NOTHING = _States(_EMPTY, _EMPTY, _EMPTY, _EMPTY, None)


def without_outliers(u: Tensor, w: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns u and w with zeros in the rows that do not count. Rows stay, so that no GPU is waited for.

    Args:
        u: Shape (tokens, d), float32.
        w: Shape (tokens, d), float32.
        counts: Which tokens count, shape (tokens,), bool. Of these, tokens whose u or w is four times as long as the
            median are left out.
    """
    for change in (u, w):
        length = change.norm(dim=1).masked_fill(~counts, torch.nan)
        counts = counts & (length <= _OUTLIER * length.nanmedian())
    return u.masked_fill(~counts[:, None], 0.0), w.masked_fill(~counts[:, None], 0.0)


def _at(hidden: Tensor, places: Tensor | None) -> Tensor:
    """Returns the rows of hidden states at some places, shape (tokens, d)."""
    rows = hidden.flatten(0, -2)
    return rows if places is None else rows[places]


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
