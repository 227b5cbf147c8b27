"""The mean Jacobians of layers: learned in the first step of a run or taken from a file, and kept fresh in the run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from zolit.optim.base_point import BasePoint, NotFinite
from zolit.optim.collectives import Collectives
from zolit.optim.feedback.equations import NoisyForwards, all_finite
from zolit.optim.feedback.refresh import TOKENS, Correction
from zolit.optim.randomness import Step


class Jacobians:
    """Mean Jacobians A_l = E[∂f_l/∂h] of layers h ↦ h + f_l(h), by least squares and without a backward pass.

    The equations are those of ``NoisyForwards``. All tokens of a forward are equations for all layers:
    A = (Σ w uᵀ)(Σ u uᵀ + λI)⁻¹; see ``Equations``. Training moves the weights, and with them the Jacobians. So one more
    forward with noise corrects A every few steps; see ``Correction``. The method is of this project.

    Args:
        layers: The layers, by name.
        forwards: Number of forwards with noise in the first step. With 0, and without a file, the Jacobians of all f_l
            are taken for 0, and are not corrected.
        refresh: Number of steps from one correction to the next; 0 corrects nothing.

    Attributes:
        learned: A_l of each layer by its name, shape (d, d); empty before the last forward with noise. For a model with
            weights of 16 bits they are bfloat16, whose rounding is far below the error of least squares. Else they are
            float32.
    """

    def __init__(self, layers: Mapping[str, nn.Module], forwards: int, refresh: int = 0) -> None:
        self._names = list(layers)
        self._noisy = NoisyForwards(layers)
        self._forwards = forwards if layers else 0
        self._refresh = refresh
        self._pending: dict[str, Tensor] = {}
        self._corrections: dict[str, Correction] = {}
        self.learned: dict[str, Tensor] = {}
        weights = [weight for layer in layers.values() for weight in layer.parameters() if weight.is_floating_point()]
        narrow = any(weight.element_size() <= 2 for weight in weights)
        self._kind = torch.bfloat16 if narrow else torch.float32

    def is_due(self, step: Step) -> bool:
        """Returns whether forwards with noise are to be made in a step."""
        if not self.learned:
            return self._forwards > 0
        return self._refresh > 0 and step.index % self._refresh == 0

    def watching(self, model: nn.Module, step: Step) -> AbstractContextManager[None]:
        """Keeps the hidden states of the forward without noise, which is made within the context."""
        return self._noisy.watching(model, step, TOKENS if self.learned else None)

    def learn(self, base: BasePoint) -> None:
        """Makes the forwards with noise. Called after the forward within ``watching``, on the same batch.

        What is learned counts after ``keep`` only, because a step may still be skipped.

        Raises:
            NotFinite: If a loss, or a Jacobian of the first step, is not finite.
        """
        if self.learned:
            self._corrections = {name: Correction(self._kind) for name in self._names}
            with self._noisy.noise(base.step, 0, self._corrections, is_last=True):
                base.loss()
            self._noisy.forget()
        else:
            self._measure(base)

    def _measure(self, base: BasePoint) -> None:
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

    def keep(self, collectives: Collectives) -> None:
        """Keeps what ``learn`` has learned. Called when the step is not skipped, before ``pulled_back``.

        A correction that is not finite changes nothing.
        """
        self.learned.update(self._pending)
        for name, own in self._corrections.items():
            jacobian = self._on(name, own.device).float()
            change = collectives.all_mean(own.of(jacobian))
            self.learned[name] = (jacobian + change.where(change.isfinite().all(), 0.0)).to(self._kind)
        self._pending, self._corrections = {}, {}

    def forget(self) -> None:
        """Drops what ``learn`` has learned. Called when the step is skipped."""
        self._noisy.forget()
        self._pending, self._corrections = {}, {}

    def pulled_back(self, name: str, delta: Tensor) -> Tensor:
        """Returns (I + A_l)ᵀδ for each row δ, the gradient before layer l; shape (rows, d), float32."""
        return delta + delta @ self._on(name, delta.device).float() if name in self.learned else delta

    def _on(self, name: str, device: torch.device) -> Tensor:
        """Returns a learned A on a device. Those of a file, or of a loaded state, may lie on another one."""
        if self.learned[name].device != device:
            self.learned[name] = self.learned[name].to(device)
        return self.learned[name]

    def load(self, learned: Mapping[str, Tensor]) -> None:
        """Takes Jacobians that were learned before."""
        self.learned = {name: jacobian.to(self._kind) for name, jacobian in learned.items()}
