"""The mean Jacobians of layers: learned in the first step of a run, or taken from a file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from zolit.optim.base_point import BasePoint, NotFinite
from zolit.optim.feedback.equations import NoisyForwards, all_finite


class Jacobians:
    """Mean Jacobians A_l = E[∂f_l/∂h] of layers h ↦ h + f_l(h), by least squares and without a backward pass.

    The equations are those of ``NoisyForwards``. All tokens of a forward are equations for all layers:
    A = (Σ w uᵀ)(Σ u uᵀ + λI)⁻¹; see ``Equations``. The method is of this project.

    Args:
        layers: The layers, by name.
        forwards: Number of forwards with noise. With 0, the Jacobians of all f_l are taken for 0.

    Attributes:
        learned: A_l of each layer by its name, shape (d, d); empty before the last forward with noise. For a model with
            weights of 16 bits they are bfloat16, whose rounding is far below the error of least squares. Else they are
            float32.
    """

    def __init__(self, layers: Mapping[str, nn.Module], forwards: int) -> None:
        self._names = list(layers)
        self._noisy = NoisyForwards(layers)
        self._forwards = forwards if layers else 0
        self._pending: dict[str, Tensor] = {}
        self.learned: dict[str, Tensor] = {}
        weights = [weight for layer in layers.values() for weight in layer.parameters() if weight.is_floating_point()]
        narrow = any(weight.element_size() <= 2 for weight in weights)
        self._kind = torch.bfloat16 if narrow else torch.float32

    @property
    def due(self) -> bool:
        """Whether the forwards with noise are still to be made."""
        return self._forwards > 0 and not self.learned

    def watching(self, model: nn.Module) -> AbstractContextManager[None]:
        """Keeps the hidden states of the forward without noise, which is made within the context."""
        return self._noisy.watching(model)

    def learn(self, base: BasePoint) -> None:
        """Makes the forwards with noise. Called after the forward within ``watching``, on the same batch.

        What is learned counts after ``keep`` only, because a step may still be skipped.

        Raises:
            NotFinite: If a loss or a Jacobian is not finite.
        """
        equations = self._noisy.empty()
        for forward in range(self._forwards):
            with self._noisy.noise(base.step, forward, equations):
                base.loss()
        self._noisy.forget()
        for name in self._names:
            own = equations.pop(name)
            own.squares, own.products = (base.collectives.all_mean(side) for side in (own.squares, own.products))
            self._pending[name] = own.solved().to(self._kind)
        if not all_finite(self._pending.values()):
            raise NotFinite("the calibration")

    def keep(self) -> None:
        """Keeps what ``learn`` has learned. Called when the step is not skipped."""
        self.learned.update(self._pending)
        self._pending = {}

    def forget(self) -> None:
        """Drops what ``learn`` has learned. Called when the step is skipped."""
        self._noisy.forget()
        self._pending = {}

    def pulled_back(self, name: str, delta: Tensor) -> Tensor:
        """Returns (I + A_l)ᵀδ for each row δ, the gradient before layer l; shape (rows, d), float32."""
        jacobian = self._pending.get(name, self.learned.get(name))
        if jacobian is None:
            return delta
        if jacobian.device != delta.device:  # of a file, or of a loaded state
            jacobian = self.learned[name] = jacobian.to(delta.device)
        return delta + delta @ jacobian.float()

    def load(self, learned: Mapping[str, Tensor]) -> None:
        """Takes Jacobians that were learned before."""
        self.learned = {name: jacobian.to(self._kind) for name, jacobian in learned.items()}
